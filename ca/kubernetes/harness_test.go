package kubernetes

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/kubeapi"
	"github.com/writ-mesh/writ/internal/kubetest"
	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/internal/proctest"
)

const budget = 30 * time.Second

var td = spiffeid.RequireTrustDomainFromString("example.org")

// authority is an Issuer.
type authority struct {
	t     *testing.T
	clock *clock

	mu       sync.Mutex
	roots    []*pkitest.Root // the last one signs
	life     time.Duration
	issued   map[string]int // by SPIFFE ID
	refuse   error
	revoked  map[string]bool // by serial
	sequence uint64
	replaced chan struct{}
}

func newAuthority(t *testing.T, c *clock) *authority {
	t.Helper()
	return &authority{t: t, clock: c, roots: []*pkitest.Root{pkitest.NewRoot(t, td.Name())}, life: 24 * time.Hour, issued: map[string]int{}, revoked: map[string]bool{}, sequence: 1, replaced: make(chan struct{})}
}

// Issue implements Issuer.
func (a *authority) Issue(_ context.Context, id spiffeid.ID, key publicKey) ([]*x509.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refuse != nil {
		return nil, a.refuse
	}
	a.issued[id.String()]++
	leaf := pkitest.Leaf(id.String(), a.life)
	leaf.NotBefore, leaf.NotAfter = a.clock.now().Add(-time.Minute), a.clock.now().Add(a.life)
	der, err := a.roots[len(a.roots)-1].Sign(leaf, key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return []*x509.Certificate{cert}, err
}

// Usable implements Issuer.
func (a *authority) Usable(leaf *x509.Certificate) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.revoked[leaf.SerialNumber.String()] {
		return errors.New("revoked")
	}
	return nil
}

// Trust implements Issuer.
func (a *authority) Trust() Trust {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := x509bundle.New(td)
	for _, r := range a.roots {
		b.AddX509Authority(r.Cert)
	}
	return Trust{Sequence: a.sequence, Bundle: b, Authority: hex.EncodeToString(a.roots[len(a.roots)-1].Cert.SubjectKeyId), Replaced: a.replaced}
}

// change changes the roots.
func (a *authority) change(roots ...*pkitest.Root) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.roots = roots
	a.sequence++
	close(a.replaced)
	a.replaced = make(chan struct{})
}

func (a *authority) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

func (a *authority) count(id string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.issued[id]
}

// clock is a clock that can be put forward.
type clock struct {
	mu sync.Mutex
	by time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.by)
}

func (c *clock) forward(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.by += by
}

// harness is a cluster that is followed.
type harness struct {
	t         *testing.T
	api       *kubetest.Cluster
	ns        string
	authority *authority
	clock     *clock
	config    Config

	*Cluster
	stop func()
	log  *proctest.Output
}

// follow follows what an API has in a namespace, which is made; change may alter the
// configuration.
func follow(t *testing.T, api *kubetest.Cluster, ns string, change func(*Config)) *harness {
	t.Helper()
	api.Namespace(t, ns)
	h := &harness{t: t, api: api, ns: ns, clock: new(clock), config: DefaultConfig(), log: new(proctest.Output)}
	h.authority = newAuthority(t, h.clock)
	h.config.API, h.config.CAFile, h.config.TokenFile, h.config.Namespaces = api.URL, api.CAFile, api.TokenFile, []string{ns}
	change(&h.config)
	if err := h.config.Validate(); err != nil {
		t.Fatal(err)
	}
	h.run()
	t.Cleanup(func() { h.stop() })
	return h
}

func (h *harness) run() {
	h.Cluster = New(h.config, td, h.authority, prometheus.NewRegistry(), h.clock.now, slog.New(slog.NewTextHandler(h.log, nil)))
	if h.writer != nil {
		h.writer.tick = 20 * time.Millisecond
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			h.t.Errorf("it ended with %v", err)
		}
		if h.t.Failed() {
			h.t.Log(h.log)
		}
	})
}

func (h *harness) restart() {
	h.stop()
	h.run()
}

func withSecrets(c *Config) { c.Secrets = true }

// path is that of an account's Secret.
func (h *harness) path(account string) string {
	return "/api/v1/namespaces/" + h.ns + "/secrets/istio." + account
}

// id is an account's.
func (h *harness) id(account string) string {
	return "spiffe://example.org/ns/" + h.ns + "/sa/" + account
}

// secret reads an account's Secret, nil if there is none.
func (h *harness) secret(account string) *secret {
	h.t.Helper()
	data, err := h.api.Call(h.t, http.MethodGet, h.path(account), nil)
	if is(err, http.StatusNotFound) {
		return nil
	}
	s := new(secret)
	if err == nil {
		err = json.Unmarshal(data, s)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

const billing = "billing"

// eventually waits until a Secret is as it should be.
func (h *harness) eventually(account string, ok func(*secret) error) *secret {
	h.t.Helper()
	var s *secret
	proctest.Eventually(h.t, budget, func() error {
		if s = h.secret(account); s == nil {
			return errors.New("the Secret of " + account + " is not there")
		}
		return ok(s)
	})
	return s
}

// leaf checks a Secret as the pod that has it would, at the clock's time.
func (h *harness) leaf(s *secret) (*x509.Certificate, error) {
	h.t.Helper()
	if s.Type != secretType || len(s.Data) != 3 {
		return nil, errors.New("its type is " + s.Type)
	}
	pair, err := tls.X509KeyPair(s.Data[chainFile], s.Data[keyFile])
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.Data[rootsFile])
	_, err = pair.Leaf.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: h.clock.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return pair.Leaf, err
}

// good waits until an account's Secret has a good certificate, and the roots of now.
func (h *harness) good(account string, also func(leaf *x509.Certificate, s *secret) bool) (*secret, *x509.Certificate) {
	h.t.Helper()
	var leaf *x509.Certificate
	s := h.eventually(account, func(s *secret) (err error) {
		if leaf, err = h.leaf(s); err != nil {
			return err
		}
		if len(leaf.URIs) != 1 || leaf.URIs[0].String() != h.id(account) {
			return errors.New("it is that of another")
		}
		if !bytes.Equal(s.Data[rootsFile], h.authority.Trust().roots()) {
			return errors.New("it has other roots")
		}
		if also != nil && !also(leaf, s) {
			return errors.New("it is not as it should be")
		}
		return nil
	})
	return s, leaf
}

// patch changes an object as somebody else would.
func (h *harness) patch(path string, change map[string]any) {
	h.t.Helper()
	data, err := json.Marshal(change)
	if err != nil {
		h.t.Fatal(err)
	}
	api := kubeapi.Client{CAFile: h.api.CAFile, TokenFile: h.api.TokenFile, Timeout: budget, MaxAnswer: 1 << 20}
	if _, err := api.Call(h.t.Context(), http.MethodPatch, h.api.URL+path, data); err != nil {
		h.t.Fatal(err)
	}
}

// states waits until the metric counts so many accounts in that state.
func (h *harness) states(state string, want float64) {
	h.t.Helper()
	proctest.Until(h.t, budget, state, func() bool {
		var m dto.Metric
		if err := h.metrics.secrets.WithLabelValues(state).Write(&m); err != nil {
			h.t.Fatal(err)
		}
		return m.GetGauge().GetValue() == want
	})
}

// rest waits until nothing is under way for an account.
func (h *harness) rest(account string) {
	h.t.Helper()
	proctest.Until(h.t, budget, "rest", func() bool {
		k := h.kept(account)
		h.writer.mu.Lock()
		defer h.writer.mu.Unlock()
		return !k.busy
	})
}

// kept is what the writer knows of an account's Secret.
func (h *harness) kept(account string) *kept {
	h.t.Helper()
	h.writer.mu.Lock()
	defer h.writer.mu.Unlock()
	k := h.writer.kept[name{h.ns, account}]
	if k == nil {
		h.t.Fatalf("nothing is known of %s", account)
	}
	return k
}
