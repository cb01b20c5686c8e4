"""Images changed on the device."""
