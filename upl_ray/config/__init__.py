"""What a user can set, and how it is read: settings, command line, class names, secrets."""
