"""The sections of the page, one file each, in the order in which one decides."""
