package federated

import (
	"errors"
	"fmt"
)

// Profile says how the server of a bundle endpoint is known (SPIFFE Federation,
// section 5.2).
type Profile string

// The profiles.
const (
	// Web is by the authorities of the web.
	Web Profile = "https_web"
	// SPIFFE is by an X.509-SVID.
	SPIFFE Profile = "https_spiffe"
)

// Field is a key of the configuration that one of the profiles has.
type Field struct {
	Key, Value string
	Of         Profile
	// Needed: it must not be empty with its profile.
	Needed bool
}

// Check says whether there is such a profile, with the fields that it has and needs.
func (p Profile) Check(fields ...Field) error {
	if p != Web && p != SPIFFE {
		return fmt.Errorf("profile: %q: want %s or %s", string(p), Web, SPIFFE)
	}
	var errs []error
	for _, f := range fields {
		switch {
		case f.Of != p && f.Value != "":
			errs = append(errs, fmt.Errorf("%s is for %s, and the profile is %s: leave it out", f.Key, f.Of, p))
		case f.Of == p && f.Needed && f.Value == "":
			errs = append(errs, fmt.Errorf("%s needs %s", p, f.Key))
		}
	}
	return errors.Join(errs...)
}
