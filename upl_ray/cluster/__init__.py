"""Everything that talks to Ray about nodes: joining, watching, checking, placing actors."""
