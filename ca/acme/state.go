package acme

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	stepacme "github.com/smallstep/certificates/acme"
	"go.step.sm/crypto/jose"

	"github.com/writ-mesh/writ/ca/ledger"
)

// Prefix is that of the keys of the ledger's documents of this package.
const Prefix = "acme/"

// The documents: the key that authenticates nonces, used nonces, accounts by the
// thumbprint of their key (RFC 7638), orders, and certificates by serial number until
// they expire.
const (
	nonceKey          = Prefix + "nonce-key"
	noncePrefix       = Prefix + "nonces/"
	accountPrefix     = Prefix + "accounts/"
	orderPrefix       = Prefix + "orders/"
	certificatePrefix = Prefix + "certificates/"
)

// account is a document.
type account struct {
	Key     *jose.JSONWebKey `json:"key"`
	Contact []string         `json:"contact,omitempty"`
	Status  stepacme.Status  `json:"status"`
	// External is the external account that it was made with.
	External string `json:"external,omitempty"`
	// Location is the address of the account without its ID.
	Location string    `json:"location"`
	Created  time.Time `json:"created"`
	// Updated is when its contacts or its key were changed last.
	Updated time.Time `json:"updated,omitzero"`
	// Moved is the ID of the account that has this key now, of what is no account itself:
	// one whose key was changed keeps its ID, the thumbprint of its first key.
	Moved string `json:"moved,omitempty"`
}

// order is a document, with all that belongs to it.
type order struct {
	Account        string          `json:"account"`
	Status         stepacme.Status `json:"status"`
	Expires        time.Time       `json:"expires"`
	Authorizations []authorization `json:"authorizations"`
	// Certificate is the serial number of what was issued.
	Certificate string          `json:"certificate,omitempty"`
	NotBefore   time.Time       `json:"not_before,omitzero"`
	NotAfter    time.Time       `json:"not_after,omitzero"`
	Error       *stepacme.Error `json:"error,omitempty"`
}

// authorization is for one name, without the asterisk of a wildcard.
type authorization struct {
	Name       string          `json:"name"`
	Wildcard   bool            `json:"wildcard,omitempty"`
	Status     stepacme.Status `json:"status"`
	Token      string          `json:"token,omitempty"`
	Challenges []challenge     `json:"challenges,omitempty"`
}

type challenge struct {
	Type      stepacme.ChallengeType `json:"type"`
	Status    stepacme.Status        `json:"status"`
	Validated string                 `json:"validated,omitempty"`
	Error     *stepacme.Error        `json:"error,omitempty"`
}

// certificate is a document.
type certificate struct {
	Account string `json:"account"`
	Order   string `json:"order"`
	// Chain begins with the certificate, in DER.
	Chain    [][]byte  `json:"chain"`
	NotAfter time.Time `json:"not_after"`
}

// name is that of the certificate.
func (a authorization) name() string {
	if a.Wildcard {
		return "*." + a.Name
	}
	return a.Name
}

func (o *order) names() []string {
	out := make([]string, len(o.Authorizations))
	for i, a := range o.Authorizations {
		out[i] = a.name()
	}
	return out
}

// open tells whether there is no certificate for the order.
func (o *order) open() bool { return o.Status != stepacme.StatusValid }

// settle brings the order's status up to date with its authorizations.
func (o *order) settle() {
	if o.Status != stepacme.StatusPending {
		return
	}
	valid := 0
	for _, a := range o.Authorizations {
		switch a.Status {
		case stepacme.StatusValid:
			valid++
		case stepacme.StatusInvalid:
			o.Status = stepacme.StatusInvalid
			return
		}
	}
	if valid == len(o.Authorizations) {
		o.Status = stepacme.StatusReady
	}
}

// toStep gives the order as smallstep has it. ttl is the life that a certificate of
// it would have.
func (o *order) toStep(id string, now time.Time, ttl time.Duration) *stepacme.Order {
	out := &stepacme.Order{
		ID: id, AccountID: o.Account, ProvisionerID: provisionerID, Status: o.Status, ExpiresAt: o.Expires, Error: o.Error,
		CertificateID: o.Certificate, NotBefore: o.NotBefore, NotAfter: o.NotAfter,
	}
	if o.Certificate == "" {
		out.NotBefore, out.NotAfter = now.UTC(), now.UTC().Add(ttl)
	}
	for i, a := range o.Authorizations {
		out.Identifiers = append(out.Identifiers, stepacme.Identifier{Type: stepacme.DNS, Value: a.name()})
		out.AuthorizationIDs = append(out.AuthorizationIDs, authorizationID(id, i))
	}
	return out
}

func (o *order) authorizationToStep(id string, i int) *stepacme.Authorization {
	a := o.Authorizations[i]
	out := &stepacme.Authorization{
		ID: authorizationID(id, i), AccountID: o.Account, Token: a.Token, Identifier: stepacme.Identifier{Type: stepacme.DNS, Value: a.Name},
		Status: a.Status, Wildcard: a.Wildcard, ExpiresAt: o.Expires,
	}
	for n := range a.Challenges {
		out.Challenges = append(out.Challenges, o.challengeToStep(id, i, n))
	}
	return out
}

func (o *order) challengeToStep(id string, i, n int) *stepacme.Challenge {
	a := o.Authorizations[i]
	c := a.Challenges[n]
	return &stepacme.Challenge{
		ID: strconv.Itoa(n), AccountID: o.Account, AuthorizationID: authorizationID(id, i), Value: a.Name, Type: c.Type, Status: c.Status,
		Token: a.Token, ValidatedAt: c.Validated, Error: c.Error,
	}
}

func authorizationID(order string, i int) string { return order + "." + strconv.Itoa(i) }

// splitAuthorization takes an authorization's ID apart.
func splitAuthorization(id string) (order string, i int, ok bool) {
	order, number, _ := strings.Cut(id, ".")
	i, err := strconv.Atoi(number)
	return order, i, err == nil && i >= 0
}

// read unmarshals a document.
func read(d ledger.Document, v any) error {
	if err := json.Unmarshal(d.Value, v); err != nil {
		return fmt.Errorf("the ledger's document %s: %w", d.Key, err)
	}
	return nil
}
