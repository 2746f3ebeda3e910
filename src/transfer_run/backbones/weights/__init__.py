"""Where weights come from: the hub, folders, files of other libraries."""
