"""Where and how small modules are put into a backbone."""
