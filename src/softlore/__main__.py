"""`python -m softlore` is the command `softlore`, as torchrun starts it."""

from softlore.cli import main

if __name__ == "__main__":
    main()
