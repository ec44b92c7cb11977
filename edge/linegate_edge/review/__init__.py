"""The station's HTTP side: frames in, verdicts, evidence and metrics out, and the page that shows it live."""
