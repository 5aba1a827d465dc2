"""One session with a server: connecting, its set-up and clean-up, and its transport."""
