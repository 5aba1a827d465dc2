"""All processes of a site: status files, commands, the host limit, MySQL's own view."""
