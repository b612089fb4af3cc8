"""The HTTP face: channel, resources and pages."""
