"""A transformers model as a GGUF file, by llama.cpp's own converter and quantizer.

    python tools/to_gguf.py storyteller storyteller-Q4_K.gguf --type Q4_K

The converter comes with llama-cpp-python's source package, which is downloaded once into runs/. It
identifies a tokenizer by how it encodes a test string. An unknown one, such as storyteller's, is
written as GPT-2's; softlore compares the two when it loads the file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from softlore.model.gguf.library import llama
from softlore.model.gguf.weights import CODES
from softlore.model.loading import locate

VERSION = "0.3.36"
HERE = Path(__file__).resolve().parent.parent / "runs" / f"llama-cpp-python-{VERSION}"
TYPES = {"Q8_0": 7, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18}  # llama.cpp's numbers of file types


def source() -> Path:
    """The folder of llama.cpp's source, downloaded if necessary."""
    inside = f"llama_cpp_python-{VERSION}"
    path = HERE / inside / "vendor" / "llama.cpp"
    if not path.is_dir():
        HERE.mkdir(parents=True, exist_ok=True)
        print(f"downloading the source of llama-cpp-python {VERSION} …", file=sys.stderr)
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary",
             ":all:", f"llama-cpp-python=={VERSION}", "-d", str(HERE)],
            check=True,
        )  # fmt: skip
        with tarfile.open(HERE / f"{inside}.tar.gz") as archive:
            archive.extractall(HERE, filter="data")
    return path


def server() -> Path:
    """The path of llama-server, built if necessary, which takes some minutes."""
    built = HERE / "build"
    path = built / "bin" / "llama-server"
    if not path.is_file():
        print("building llama-server …", file=sys.stderr)
        options = ["-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF"]
        subprocess.run(["cmake", "-S", str(source()), "-B", str(built), *options], check=True)
        build = ["cmake", "--build", str(built), "--target", "llama-server", "--parallel"]
        subprocess.run([*build, str(os.cpu_count() or 1)], check=True)
    return path


def convert(folder: str | Path, out: Path, kind: str = "f16") -> None:
    """Writes a model as f32, f16, or one of `TYPES`."""
    if kind not in TYPES:
        _convert(folder, out, kind)
        return
    with tempfile.TemporaryDirectory() as scratch:
        unquantized = Path(scratch) / "f16.gguf"
        _convert(folder, unquantized, "f16")
        lib = llama()
        given = lib.llama_model_quantize_default_params()
        given.ftype = TYPES[kind]
        given.nthread = 1
        if lib.llama_model_quantize(str(unquantized).encode(), str(out).encode(), given):
            raise SystemExit(f"llama.cpp could not write {out}")


def _convert(folder: str | Path, out: Path, kind: str) -> None:
    command = [sys.executable, __file__, "--inside", str(source()), str(folder), str(out)]
    subprocess.run([*command, "--type", kind], check=True)


def _inside(where: str, folder: str, out: str, kind: str) -> None:
    """Runs the converter with its tokenizer checks and metadata patched; see the module's docs."""
    sys.path[:0] = [where, where + "/gguf-py"]
    import gguf
    from conversion import base

    known = base.TextModel.get_vocab_base_pre

    def pre_tokenizer(self: object, tokenizer: object) -> str:
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:
            return "gpt-2"

    base.TextModel.get_vocab_base_pre = pre_tokenizer
    if not (Path(folder) / "tokenizer.model").is_file():
        base.TextModel._set_vocab_sentencepiece = base.TextModel._set_vocab_gpt2
    codes = json.loads((Path(folder) / "config.json").read_text()).get("control_codes")
    if codes:
        write = gguf.GGUFWriter.write_header_to_file

        def with_codes(self: object, *args: object, **kwargs: object) -> None:
            self.add_string(CODES, json.dumps(codes))  # type: ignore[attr-defined]
            write(self, *args, **kwargs)

        gguf.GGUFWriter.write_header_to_file = with_codes
    import runpy

    sys.argv = ["convert", folder, "--outfile", out, "--outtype", kind]
    runpy.run_path(where + "/convert_hf_to_gguf.py", run_name="__main__")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder, or storyteller")
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", default="f16", choices=["f32", "f16", *TYPES])
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        _inside(given.inside, given.model, str(given.out), given.type)
    else:
        convert(locate(given.model), given.out, given.type)


if __name__ == "__main__":
    main()
