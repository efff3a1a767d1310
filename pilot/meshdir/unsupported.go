package meshdir

// What this version reads and checks but does not enforce is never passed over:
// where leaving it out would change what happens to traffic it is refused, and
// where it would only go unseen it is a warning.

// unsupported refuses a field that is set.
func (c *checker) unsupported(set bool, at string) {
	if set {
		c.errorf(at, "it is not supported by this version: remove it")
	}
}

// withoutEffect warns of a field that is set.
func (c *checker) withoutEffect(set bool, at string) {
	if set {
		c.warnf(at, "it has no effect in this version")
	}
}
