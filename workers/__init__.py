"""Everything after the queue: from the raw request to the row in `bookings`."""
