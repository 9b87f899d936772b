// Calls to the server: JSON, files, and streams of events.

const ROOT = "/studio/api";
const KEY = "softlore.key";

/** An error response of the server, with its message. */
export class ApiError extends Error {
  constructor(status, error) {
    super(error.message);
    Object.assign(this, { status, type: error.type, entry: error.entry, field: error.field });
  }
}

let askKey = async () => null; // set by the page: asks the writer for the API key
let asking = null;
export function onKeyNeeded(fn) {
  askKey = fn;
}

/** A path of names, each as one segment, and its query. */
export function at(segments, query = {}) {
  const given = Object.entries(query).filter(([, value]) => value !== undefined && value !== "");
  const asked = new URLSearchParams(given).toString();
  return `${ROOT}/${segments.map(encodeURIComponent).join("/")}${asked ? `?${asked}` : ""}`;
}

async function send(method, url, { json, raw, signal } = {}) {
  const headers = {};
  const key = readKey();
  if (key) headers.Authorization = `Bearer ${key}`;
  if (json !== undefined) headers["Content-Type"] = "application/json";
  if (raw !== undefined) headers["Content-Type"] = "application/octet-stream";
  const body = json !== undefined ? JSON.stringify(json) : raw;
  let answer;
  try {
    answer = await fetch(url, { method, headers, body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, {
      message: "The server does not answer. Is it still running? What you typed is kept here.",
      type: "offline",
    });
  }
  if (answer.status === 401) {
    if (key && key !== readKey()) return send(method, url, { json, raw, signal });
    asking ??= askKey(Boolean(key)).finally(() => (asking = null));
    const given = await asking;
    if (given) {
      sessionStorage.setItem(KEY, given);
      return send(method, url, { json, raw, signal });
    }
  }
  if (!answer.ok) throw await refused(answer);
  return answer;
}

async function refused(answer) {
  try {
    const body = await answer.json();
    if (body.error?.message) return new ApiError(answer.status, body.error);
    if (typeof body.detail === "string") return new ApiError(answer.status, { message: body.detail });
  } catch {
    // Not JSON: there is only the status.
  }
  const message = `The server refused this (${answer.status} ${answer.statusText}).`;
  return new ApiError(answer.status, { message });
}

function readKey() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

const request = async (method, url, given) => (await send(method, url, given)).json();

export const get = (segments, query) => request("GET", at(segments, query));
export const post = (segments, json = {}) => request("POST", at(segments), { json });
export const put = (segments, json) => request("PUT", at(segments), { json });
export const patch = (segments, json) => request("PATCH", at(segments), { json });
export const remove = (segments) => request("DELETE", at(segments));

/** Sends a file as it is. */
export const upload = (segments, file, name) =>
  request("POST", at(segments, { filename: file.name, name }), { raw: file });

/** Fetches a file (with the key, which a plain link could not send) and saves it. */
export async function download(segments, query, otherwise) {
  const answer = await send("GET", at(segments, query));
  const header = answer.headers.get("Content-Disposition") ?? "";
  const named = /filename\*=UTF-8''([^;]+)/i.exec(header)?.[1];
  const name = named ? decodeURIComponent(named) : /filename="?([^";]+)/i.exec(header)?.[1];
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = name ?? otherwise;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** The events of a stream, `{name, data}` each; leaving the loop closes the connection. */
export async function* events(method, segments, { json, signal } = {}) {
  const answer = await send(method, at(segments), { json, signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      held = (held + (done ? "\n\n" : value)).replace(/\r\n/g, "\n");
      const blocks = held.split("\n\n");
      held = blocks.pop();
      for (const block of blocks) {
        const event = parsed(block);
        if (event) yield event;
      }
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parsed(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    const [field, ...rest] = line.split(":");
    const value = rest.join(":").replace(/^ /, "");
    if (field === "event") name = value;
    if (field === "data") data.push(value);
  }
  return data.length ? { name, data: JSON.parse(data.join("\n")) } : null;
}
