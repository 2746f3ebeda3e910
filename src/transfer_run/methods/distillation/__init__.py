"""Methods that train a student against one or more frozen teachers."""
