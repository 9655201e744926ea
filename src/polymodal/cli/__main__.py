"""``python -m polymodal.cli``, as torchrun starts it."""

from polymodal.cli import main

main()
