"""``python -m example_app``: serve the app; see :mod:`example_app.demo.serve`."""

from .demo.serve import main

if __name__ == "__main__":
    main()
