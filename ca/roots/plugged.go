package roots

import (
	"bytes"
	"slices"
)

// maxIssuers is how many authorities below a root are remembered. Of an older one
// no certificate is left, as each lives for hours and certificates for a day.
const maxIssuers = 64

// RootOf gives the key id of the root in whose name an issuer signed, or the
// issuer's own if it is none that signed below a root.
func (s State) RootOf(issuer string) string {
	for _, a := range s.Authorities {
		if slices.Contains(a.Issuers, issuer) {
			return a.KeyID
		}
	}
	return issuer
}

// Signs notes that an issuer signs in the name of a root, beside which extra ones
// are trusted. The sequence rises if other roots are trusted than before.
func (s State) Signs(root, issuer string, extra [][]byte) State {
	before := s.Trusted()
	s.Authorities = slices.Clone(s.Authorities)
	for i, a := range s.Authorities {
		if a.KeyID != root || issuer == root || slices.Contains(a.Issuers, issuer) {
			continue
		}
		a.Issuers = append(slices.Clone(a.Issuers), issuer)
		a.Issuers = a.Issuers[max(0, len(a.Issuers)-maxIssuers):]
		s.Authorities[i] = a
	}
	s.Extra = extra
	if !slices.EqualFunc(before, s.Trusted(), bytes.Equal) {
		s.Sequence++
	}
	return s
}

// Trusted are the roots in the bundle in DER, each once: those that sign or signed
// here first.
func (s State) Trusted() [][]byte {
	var out [][]byte
	add := func(der []byte) {
		if !slices.ContainsFunc(out, func(o []byte) bool { return bytes.Equal(o, der) }) {
			out = append(out, der)
		}
	}
	for _, a := range s.Authorities {
		add(a.Certificate)
	}
	for _, der := range s.Extra {
		add(der)
	}
	return out
}
