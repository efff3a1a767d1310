// Package nodeattest finds out who joins, from proofs that others have made: the
// token of a Kubernetes service account, or a certificate of another authority.
// It says who somebody is, a node or a service of Writ, and no more: whether that
// may join is for the authority to decide.
//
// Neither proof is good once only, as a join token is. A Kubernetes token is good
// for whoever has it until it expires; a certificate's proof is bound to one
// certificate request, so that who copies it gets a certificate for a key that he
// does not have.
//
// Sources: https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/,
// https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/,
// RFC 7515, RFC 7519, RFC 5280.
package nodeattest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/identity"
)

// ErrUnavailable is wrapped by errors that say nothing about the proof: who
// decides about it could not be asked. Others mean that the proof is not good.
var ErrUnavailable = errors.New("the proof cannot be checked now")

// Entrant is who a proof is of.
type Entrant struct {
	// ID is a node agent's or that of a service of Writ.
	ID spiffeid.ID
	// Requester names the proof for the ledger.
	Requester string
	// Facts are what the proof says besides.
	Facts []string
}

// Config says which proofs are taken, besides join tokens.
type Config struct {
	// Kubernetes are the clusters whose service accounts may join.
	Kubernetes []Kubernetes `yaml:"kubernetes"`
	// X509 are the authorities whose certificates prove who a node is.
	X509 []X509 `yaml:"certificates"`
}

// Validate checks the configuration, without reading files.
func (c Config) Validate() error {
	var errs []error
	for i, k := range c.Kubernetes {
		if err := k.validate(); err != nil {
			errs = append(errs, fmt.Errorf("join.kubernetes, number %d: %w", i+1, err))
		}
	}
	for i, x := range c.X509 {
		if err := x.validate(); err != nil {
			errs = append(errs, fmt.Errorf("join.certificates, number %d: %w", i+1, err))
		}
	}
	return errors.Join(errs...)
}

// Attestor checks proofs. It is safe for concurrent use.
type Attestor struct {
	td       spiffeid.TrustDomain
	now      func() time.Time
	clusters []*cluster
	x509     []X509
}

// New returns an attestor for a configuration that is valid.
func New(c Config, td spiffeid.TrustDomain, now func() time.Time) *Attestor {
	a := &Attestor{td: td, now: now, x509: c.X509}
	for _, k := range c.Kubernetes {
		a.clusters = append(a.clusters, newCluster(k, now))
	}
	return a
}

var errNotTaken = errors.New("this authority takes no proof of this kind")

// Kubernetes checks a service-account token.
func (a *Attestor) Kubernetes(ctx context.Context, token string) (Entrant, error) {
	if len(a.clusters) == 0 {
		return Entrant{}, errNotTaken
	}
	issuer, err := issuerOf(token)
	if err != nil {
		return Entrant{}, err
	}
	for _, c := range a.clusters {
		if c.cfg.Issuer != issuer {
			continue
		}
		b, err := c.check(ctx, token)
		if err != nil {
			return Entrant{}, err
		}
		return c.entrant(a.td, b)
	}
	return Entrant{}, fmt.Errorf("the token's issuer is %.200q, which is none of the clusters'", issuer)
}

// entrant maps what a token is bound to.
func (c *cluster) entrant(td spiffeid.TrustDomain, b bound) (Entrant, error) {
	account := b.namespace + "/" + b.serviceAccount
	e := Entrant{Requester: "kubernetes " + account, Facts: b.facts()}
	if b.pod == "" {
		return e, fmt.Errorf("the token of %s is not bound to a pod; use a projected one", account)
	}
	var err error
	if service, ok := c.cfg.Services[account]; ok {
		e.ID, err = identity.Service(td, service)
		return e, err
	}
	for _, agent := range c.cfg.NodeAgents {
		if agent != account {
			continue
		}
		if b.node == "" {
			return e, fmt.Errorf("the token of %s does not say on which node its pod is; Kubernetes 1.30 and later do", account)
		}
		e.ID, err = identity.Node(td, c.cfg.NodePrefix+b.node)
		return e, err
	}
	return e, fmt.Errorf("the service account %s is neither a node agent's nor a service's", account)
}
