package authz

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/writ-mesh/writ/authz/background"
	"github.com/writ-mesh/writ/authz/bundle"
	"github.com/writ-mesh/writ/authz/rego"
	"github.com/writ-mesh/writ/authz/token"
	"github.com/writ-mesh/writ/internal/jwks"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
)

// policySet is one revision of everything that decides. It is immutable.
type policySet struct {
	// revision is a hash of the content, so that it is the same on each replica.
	revision string
	policies map[string]*policy
	// retired are policies that were removed a moment ago.
	retired map[string]retiredPolicy
	issuers []issuer
	// forgotten names the policies that the set before this one still knew.
	forgotten map[string]bool
	// changed is closed when another set takes this one's place.
	changed chan struct{}
}

type policy struct {
	// name is "<namespace>/<name>".
	name        string
	observe     bool
	program     *rego.Program
	fingerprint [sha256.Size]byte
	counts      *policyCounts
}

type retiredPolicy struct {
	*policy
	until time.Time
}

// issuer is a TokenIssuer in the form in which it is used.
type issuer struct {
	namespace string
	// meshWide: it counts for requests to every workload.
	meshWide  bool
	issuer    string
	audiences []string
	where     token.Locations
	// keys are inline keys; uri is where they come from if nil.
	keys *jwks.Set
	uri  string
}

// find gives a policy that is in force, or was until a moment ago.
func (s *policySet) find(name string, now time.Time) *policy {
	if p := s.policies[name]; p != nil {
		return p
	}
	if r, ok := s.retired[name]; ok && now.Before(r.until) {
		return r.policy
	}
	return nil
}

// policies holds the set in force and makes new ones. Readers take current and
// never wait; writers are serialized.
type policies struct {
	current atomic.Pointer[policySet]
	options rego.Options
	retire  time.Duration
	fetcher *token.Fetcher
	store   *store
	// remotes follow bundles that are elsewhere.
	remotes *remotes
	log     *slog.Logger
	// swapped is called after each swap, for metrics.
	swapped func(*policySet)

	mu sync.Mutex
	// what the current set was made of
	regoPolicies map[string]*configpb.RegoPolicy
	tokenIssuers map[string]*configpb.TokenIssuer
}

func newPolicies(o rego.Options, retire time.Duration, f *token.Fetcher, st *store, r *remotes, log *slog.Logger, swapped func(*policySet)) *policies {
	p := &policies{options: o, retire: retire, fetcher: f, store: st, remotes: r, log: log, swapped: swapped}
	p.current.Store(&policySet{revision: "none", changed: make(chan struct{})})
	return p
}

// applyPolicies puts a whole set of RegoPolicies in force. An error names the
// policy at fault, and everything stays as it was.
func (p *policies) applyPolicies(ctx context.Context, all map[string]*configpb.RegoPolicy) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.current.Load()
	next := make(map[string]*policy, len(all))
	elsewhere := make(map[string]*remote)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		fp, err := fingerprint(all[name])
		if err != nil {
			return err
		}
		if isRemote(all[name]) {
			if next[name], elsewhere[name], err = p.remotePolicy(ctx, name, fp, all[name], old.policies[name]); err != nil {
				return fmt.Errorf("RegoPolicy %s%s: %w", name, at(all[name].GetSource()), err)
			}
			continue
		}
		if have := old.policies[name]; have != nil && have.fingerprint == fp {
			next[name] = have
			continue
		}
		program, err := p.compile(ctx, all[name])
		if err != nil {
			return fmt.Errorf("RegoPolicy %s%s: %w", name, at(all[name].GetSource()), err)
		}
		next[name] = &policy{name: name, observe: all[name].GetObserve(), program: program, fingerprint: fp}
	}
	p.regoPolicies = all
	p.swap(ctx, next, old.issuers)
	p.remotes.follow(elsewhere)
	return nil
}

// remotePolicy makes a policy whose bundle is elsewhere. Until that has come,
// what the policy was before decides, and if it is new everything is refused.
func (p *policies) remotePolicy(ctx context.Context, name string, fp [sha256.Size]byte, r *configpb.RegoPolicy, was *policy) (*policy, *remote, error) {
	x, err := p.remotes.prepare(name, fp, r, func(x *remote, s *bundle.Snapshot) { p.arrived(ctx, name, x, s) })
	if err != nil {
		return nil, nil, err
	}
	next := &policy{name: name, observe: r.GetObserve(), fingerprint: fp}
	if s := x.newest.Load(); s != nil {
		next.program = s.Program
	} else if was != nil {
		next.program = was.program
	} else if next.program, err = waiting(ctx); err != nil {
		return nil, nil, err
	}
	return next, x, nil
}

// arrived puts a new bundle of a policy in force, beside everything else as it is.
func (p *policies) arrived(ctx context.Context, name string, x *remote, s *bundle.Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.current.Load()
	was := old.policies[name]
	if was == nil || was.fingerprint != x.fingerprint || p.remotes.running[name] != x {
		return // the policy has changed meanwhile
	}
	next := maps.Clone(old.policies)
	changed := *was
	changed.program = s.Program
	next[name] = &changed
	p.swap(ctx, next, old.issuers)
}

// applyIssuers does the same for token issuers.
func (p *policies) applyIssuers(ctx context.Context, all map[string]*configpb.TokenIssuer) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var next []issuer
	var uris []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		i, err := newIssuer(name, all[name])
		if err != nil {
			return fmt.Errorf("token issuer %s: %w", name, err)
		}
		if i.keys == nil {
			uris = append(uris, i.uri)
		}
		next = append(next, i)
	}
	p.tokenIssuers = all
	p.fetcher.Watch(uris)
	p.swap(ctx, p.current.Load().policies, next)
	return nil
}

// swap makes the new set the one that decides. The caller holds mu.
func (p *policies) swap(ctx context.Context, next map[string]*policy, issuers []issuer) {
	old := p.current.Load()
	now := time.Now()
	retired, forgotten := make(map[string]retiredPolicy), make(map[string]bool)
	for name, r := range old.retired {
		switch {
		case next[name] != nil:
		case now.Before(r.until):
			retired[name] = r
		default:
			forgotten[name] = true
		}
	}
	for name, was := range old.policies {
		if next[name] == nil {
			retired[name] = retiredPolicy{was, now.Add(p.retire)}
		}
	}
	set := &policySet{revision: p.revision(), policies: next, retired: retired, issuers: issuers, forgotten: forgotten, changed: make(chan struct{})}
	p.swapped(set)
	p.current.Store(set)
	close(old.changed)
	p.log.InfoContext(ctx, "policies in force", slog.String("revision", set.revision), slog.Int("policies", len(next)), slog.Int("issuers", len(issuers)))
	if err := p.store.save(p.regoPolicies, p.tokenIssuers); err != nil {
		p.log.WarnContext(ctx, "the policies were not saved; a restart while pilot is away will not know them", slog.Any("error", err))
	}
}

// compile makes a policy's program. What is a bundle may be large, and others may be
// deciding already.
func (p *policies) compile(ctx context.Context, r *configpb.RegoPolicy) (*rego.Program, error) {
	src, err := sourceOf(r)
	if err != nil {
		return nil, err
	}
	if len(src.Bundles) == 0 || p.regoPolicies == nil {
		return rego.Compile(ctx, src, r.GetQuery(), p.options)
	}
	var program *rego.Program
	err = background.Run(ctx, func() (err error) {
		program, err = rego.Compile(ctx, src, r.GetQuery(), p.options)
		return err
	})
	return program, err
}

// revision hashes what the set is made of.
func (p *policies) revision() string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(p.regoPolicies)) {
		writeMessage(h, name, p.regoPolicies[name])
	}
	for _, name := range slices.Sorted(maps.Keys(p.tokenIssuers)) {
		writeMessage(h, name, p.tokenIssuers[name])
	}
	for _, r := range p.remotes.revisions() {
		_, _ = h.Write([]byte(r))
	}
	return hex.EncodeToString(h.Sum(nil)[:6])
}

func writeMessage(h interface{ Write([]byte) (int, error) }, name string, m proto.Message) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		b = []byte(err.Error())
	}
	sum := sha256.Sum256(b)
	_, _ = h.Write([]byte(name + "\x00"))
	_, _ = h.Write(sum[:])
}

// fingerprint covers what a policy decides by. The content of a bundle that is a
// file is not in the message, so what its files look like is in it.
func fingerprint(r *configpb.RegoPolicy) ([sha256.Size]byte, error) {
	c := proto.CloneOf(r)
	c.Source = ""
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(c)
	if err != nil {
		return [sha256.Size]byte{}, fmt.Errorf("RegoPolicy %s/%s: %w", r.GetNamespace(), r.GetName(), err)
	}
	if r.GetBundle() != nil && !isRemote(r) {
		b = append(b, filesState(strings.TrimPrefix(r.GetBundle().GetUrl(), "file://"))...)
	}
	return sha256.Sum256(b), nil
}

// sourceOf is the text of a policy: its module, or a bundle on this machine.
func sourceOf(r *configpb.RegoPolicy) (rego.Source, error) {
	b := r.GetBundle()
	if b == nil {
		if r.GetModule() == "" {
			return rego.Source{}, fmt.Errorf("it has neither module nor bundle")
		}
		name := r.GetNamespace() + "/" + r.GetName() + ".rego"
		return rego.Source{Modules: map[string]string{name: r.GetModule()}}, nil
	}
	path, ok := strings.CutPrefix(b.GetUrl(), "file://")
	if !ok || !strings.HasPrefix(path, "/") {
		return rego.Source{}, fmt.Errorf("bundle %q: want file:///path of a folder or .tar.gz", b.GetUrl())
	}
	return rego.Source{Bundles: []string{path}}, nil
}

func newIssuer(name string, t *configpb.TokenIssuer) (issuer, error) {
	namespace, _, _ := strings.Cut(name, "/")
	i := issuer{
		namespace: namespace,
		meshWide:  t.GetMeshWide(),
		issuer:    t.GetIssuer(),
		audiences: t.GetAudiences(),
		uri:       t.GetJwksUri(),
		where:     token.Locations{Params: t.GetFromParams(), Cookies: t.GetFromCookies()},
	}
	for _, h := range t.GetFromHeaders() {
		i.where.Headers = append(i.where.Headers, token.Header{Name: h.GetName(), Prefix: h.GetPrefix()})
	}
	if t.GetJwks() != "" {
		keys, err := jwks.Parse([]byte(t.GetJwks()))
		if errors.Is(err, jwks.ErrNoKey) {
			// Envoy refuses each of its tokens; there is nothing to refuse here.
			keys, err = &jwks.Set{}, nil
		}
		if err != nil {
			return issuer{}, err
		}
		i.keys = keys
		return i, nil
	}
	if i.uri == "" {
		i.uri = token.DiscoveryURI(i.issuer)
	}
	return i, nil
}

func at(source string) string {
	if source == "" {
		return ""
	}
	return " (" + source + ")"
}

// restore puts the configuration that was saved last in force, and says whether
// there was one.
func (p *policies) restore(ctx context.Context) bool {
	regoPolicies, tokenIssuers, ok, err := p.store.load()
	if err == nil && ok {
		// Known before the first swap, which saves what is known.
		p.mu.Lock()
		p.tokenIssuers = tokenIssuers
		p.mu.Unlock()
		if err = p.applyPolicies(ctx, regoPolicies); err == nil {
			err = p.applyIssuers(ctx, tokenIssuers)
		}
	}
	if err != nil {
		p.log.ErrorContext(ctx, "the saved policies cannot be used; every check is denied until pilot sends them", slog.Any("error", err))
		return false
	}
	return ok
}
