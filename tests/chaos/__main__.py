"""`PYTHONPATH=tests python -m chaos`: see the package."""

from chaos.running import main

if __name__ == "__main__":
    main()
