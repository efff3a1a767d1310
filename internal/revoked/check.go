package revoked

// Token is what a verified token says about itself. What it does not say is empty.
type Token struct {
	Issuer, Subject, ID string
	// IssuedAt is the claim iat in seconds since 1970; HasIssuedAt tells whether it
	// is there and a number.
	IssuedAt    float64
	HasIssuedAt bool
}

// Reason is why a token is revoked.
type Reason string

// The reasons. They stand behind "TokenRevocation " in the header of a refusal, as
// those of Envoy's own filter do.
const (
	NotRevoked   Reason = ""
	ByID         Reason = "jti"
	BySubject    Reason = "sub"
	IssuedBefore Reason = "issued-before"
	ByIssuer     Reason = "issuer"
)

// Check tells why a token is revoked.
func (t *Table) Check(c Token) Reason {
	if c.ID != "" {
		if _, there := t.Get(IDKey(c.Issuer, c.ID)); there {
			return ByID
		}
	}
	if c.Subject != "" {
		if r := t.check(SubjectKey(c.Issuer, c.Subject), c, BySubject); r != NotRevoked {
			return r
		}
	}
	return t.check(IssuerKey(c.Issuer), c, ByIssuer)
}

func (t *Table) check(k Key, c Token, always Reason) Reason {
	e, there := t.Get(k)
	switch {
	case !there:
		return NotRevoked
	case e.Before == 0:
		return always
	case !c.HasIssuedAt || !(c.IssuedAt >= float64(e.Before)): // also what is no number
		return IssuedBefore
	}
	return NotRevoked
}
