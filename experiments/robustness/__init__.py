"""What defences are worth: studies over many rules and attacks."""
