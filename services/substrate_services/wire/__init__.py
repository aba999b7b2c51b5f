"""What all servers share at the edge: errors as statuses, checked fields, facts as messages."""
