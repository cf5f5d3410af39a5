"""llm-foundry behind one wall: nothing else imports it."""
