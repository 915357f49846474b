"""``python -m swindow``."""

from swindow.cli import main

main()
