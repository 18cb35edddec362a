"""From a catalogue and its feedback to a published release."""
