"""Views: augmentations of a batch that report what they hid. The table is `VIEWS`."""
