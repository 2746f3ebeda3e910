"""Results to look at: one HTML file each, that needs no server, no network and no script."""
