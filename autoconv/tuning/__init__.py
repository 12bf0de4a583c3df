"""Timing candidates, verifying them, and qualifying a device."""
