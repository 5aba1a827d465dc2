"""The obvious wiring of Flask to ``PooledDB`` beside this one: ``--help``."""
