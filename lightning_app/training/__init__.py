"""What the Trainer is given: loader, checkpoint writer, schedule, allocator."""
