"""Imported images: trees that worlds can have for a root, kept by the digest of their content."""
