package nodeattest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

const (
	// maxToken bounds a token in bytes; those of Kubernetes have about 1,500.
	maxToken = 16 << 10
	// leeway is granted on the times of a token.
	leeway = 10 * time.Second
)

// Kubernetes is one cluster whose service accounts may join. Its tokens are
// checked with the cluster's public keys (JWKSFile or JWKSURL) or by asking its API
// (TokenReview), or both.
type Kubernetes struct {
	// Issuer is that of the cluster's tokens, exactly.
	Issuer string `yaml:"issuer"`
	// Audiences are those of which a token must have one.
	Audiences []string `yaml:"audiences"`
	// JWKSFile has the cluster's keys, as /openid/v1/jwks gives them. It is read anew
	// when it changes.
	JWKSFile string `yaml:"jwks_file"`
	// JWKSURL is where they are fetched, https.
	JWKSURL string `yaml:"jwks_url"`
	// TokenReview is the API server's address, https://host:port, that is asked
	// about each token.
	TokenReview string `yaml:"token_review"`
	// CAFile has the roots for JWKSURL and TokenReview; the system's if it is empty.
	CAFile string `yaml:"ca_file"`
	// TokenFile has the token with which the authority itself calls these; it is
	// read at each call.
	TokenFile string `yaml:"token_file"`
	// NodeAgents are the service accounts of node agents, NAMESPACE/NAME. The node is
	// the one that the token says.
	NodeAgents []string `yaml:"node_agents"`
	// NodePrefix goes before the names of the nodes, to tell clusters apart.
	NodePrefix string `yaml:"node_prefix"`
	// Services are the service accounts of Writ's services: NAMESPACE/NAME: pilot.
	Services map[string]string `yaml:"services"`
}

func (k Kubernetes) validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if k.Issuer == "" {
		fail("issuer: name the issuer of the cluster's tokens")
	}
	if len(k.Audiences) == 0 || slices.Contains(k.Audiences, "") {
		fail("audiences: name one at least, so that no token that was made for somebody else is taken")
	}
	if k.JWKSFile != "" && k.JWKSURL != "" {
		fail("jwks_file and jwks_url: only one of both")
	}
	if k.JWKSFile == "" && k.JWKSURL == "" && k.TokenReview == "" {
		fail("name jwks_file, jwks_url or token_review, by which tokens are checked")
	}
	for key, addr := range map[string]string{"jwks_url": k.JWKSURL, "token_review": k.TokenReview} {
		if u, err := url.Parse(addr); addr != "" && (err != nil || u.Scheme != "https" || u.Host == "") {
			fail("%s: %q: want https://host:port", key, addr)
		}
	}
	if k.TokenReview != "" && k.TokenFile == "" {
		fail("token_file: token_review needs one with which to ask")
	}
	if len(k.NodeAgents)+len(k.Services) == 0 {
		fail("name service accounts: node_agents or services")
	}
	accounts := slices.Clone(k.NodeAgents)
	for account := range k.Services {
		if slices.Contains(accounts, account) {
			fail("%s: it cannot be both a node agent and a service", account)
		}
		accounts = append(accounts, account)
	}
	for _, account := range accounts {
		if ns, name, ok := strings.Cut(account, "/"); !ok || ns == "" || name == "" || strings.Contains(name, "/") {
			fail("%q is no service account, want NAMESPACE/NAME", account)
		}
	}
	return errors.Join(errs...)
}

// bound is what a token is bound to.
type bound struct {
	namespace, serviceAccount string
	pod, podUID               string
	node                      string
}

func (b bound) facts() []string {
	out := []string{"k8s:ns:" + b.namespace, "k8s:sa:" + b.serviceAccount}
	for _, f := range []struct{ kind, value string }{{"k8s:pod-name:", b.pod}, {"k8s:pod-uid:", b.podUID}, {"k8s:node-name:", b.node}} {
		if f.value != "" {
			out = append(out, f.kind+f.value)
		}
	}
	return out
}

// cluster checks the tokens of one cluster.
type cluster struct {
	cfg    Kubernetes
	now    func() time.Time
	keys   *keys     // nil without keys
	review *reviewer // nil without an API
}

func newCluster(cfg Kubernetes, now func() time.Time) *cluster {
	c := &cluster{cfg: cfg, now: now}
	if cfg.JWKSFile != "" || cfg.JWKSURL != "" {
		c.keys = &keys{file: cfg.JWKSFile, url: cfg.JWKSURL, api: newAPI(cfg, acceptKeys), now: now}
	}
	if cfg.TokenReview != "" {
		c.review = &reviewer{url: cfg.TokenReview, audiences: cfg.Audiences, api: newAPI(cfg, "")}
	}
	return c
}

// check returns what a token is bound to, by the cluster's keys, by its API, or by
// both, which have to agree.
func (c *cluster) check(ctx context.Context, token string) (bound, error) {
	var b bound
	if c.keys != nil {
		var err error
		if b, err = c.offline(ctx, token); err != nil {
			return bound{}, err
		}
	}
	if c.review == nil {
		return b, nil
	}
	said, err := c.review.ask(ctx, token)
	if err != nil {
		return bound{}, err
	}
	if c.keys != nil && said != b {
		return bound{}, errors.New("the cluster's API says something else about the token than the token itself")
	}
	return said, nil
}

// algorithms are those of Kubernetes' tokens. None is symmetric, so that a public
// key is never taken for a secret.
func algorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512}
}

func parseToken(token string) (*jwt.JSONWebToken, error) {
	if len(token) > maxToken {
		return nil, fmt.Errorf("the token has %d bytes, at most %d are read", len(token), maxToken)
	}
	t, err := jwt.ParseSigned(token, algorithms())
	if err != nil {
		return nil, fmt.Errorf("the token cannot be read: %w", err)
	}
	if len(t.Headers) != 1 || t.Headers[0].KeyID == "" {
		return nil, errors.New("the token does not say which key signed it")
	}
	return t, nil
}

// issuerOf reads the issuer, to choose the cluster that is to check the token.
func issuerOf(token string) (string, error) {
	t, err := parseToken(token)
	if err != nil {
		return "", err
	}
	var c jwt.Claims
	if err := t.UnsafeClaimsWithoutVerification(&c); err != nil {
		return "", fmt.Errorf("the token cannot be read: %w", err)
	}
	return c.Issuer, nil
}

// privateClaims are Kubernetes' own.
type privateClaims struct {
	Kubernetes struct {
		Namespace      string  `json:"namespace"`
		ServiceAccount object  `json:"serviceaccount"`
		Pod            *object `json:"pod"`
		Node           *object `json:"node"`
	} `json:"kubernetes.io"`
}

type object struct {
	Name string `json:"name"`
	UID  string `json:"uid"`
}

func (c *cluster) offline(ctx context.Context, token string) (bound, error) {
	t, err := parseToken(token)
	if err != nil {
		return bound{}, err
	}
	key, err := c.keys.get(ctx, t.Headers[0].KeyID)
	if err != nil {
		return bound{}, err
	}
	if key.Algorithm != "" && key.Algorithm != t.Headers[0].Algorithm {
		return bound{}, fmt.Errorf("the token is signed with %s, its key is for %s", t.Headers[0].Algorithm, key.Algorithm)
	}
	var std jwt.Claims
	var own privateClaims
	if err := t.Claims(key.Key, &std, &own); err != nil {
		return bound{}, fmt.Errorf("the token's signature: %w", err)
	}
	if std.Expiry == nil {
		return bound{}, errors.New("the token does not expire; use a projected one")
	}
	if err := std.ValidateWithLeeway(jwt.Expected{Issuer: c.cfg.Issuer, AnyAudience: c.cfg.Audiences, Time: c.now()}, leeway); err != nil {
		return bound{}, fmt.Errorf("the token: %w", err)
	}
	k := own.Kubernetes
	b := bound{namespace: k.Namespace, serviceAccount: k.ServiceAccount.Name}
	if k.Pod != nil {
		b.pod, b.podUID = k.Pod.Name, k.Pod.UID
	}
	if k.Node != nil {
		b.node = k.Node.Name
	}
	if b.namespace == "" || b.serviceAccount == "" || std.Subject != subject(b) {
		return bound{}, fmt.Errorf("the token's subject %.200q is not its service account %s/%s", std.Subject, b.namespace, b.serviceAccount)
	}
	return b, nil
}

// subject is how Kubernetes names a service account as a user.
func subject(b bound) string { return "system:serviceaccount:" + b.namespace + ":" + b.serviceAccount }
