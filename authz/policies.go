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
	// policies are by name, refs the same ones by what proxies name them.
	policies, refs map[string]*policy
	retired        retired
	issuers        []issuer
	// forgotten names the policies of which the set before this one still had a content.
	forgotten map[string]bool
	// changed is closed when another set takes this one's place.
	changed chan struct{}
}

type policy struct {
	// name is "<namespace>/<name>".
	name string
	// ref is how proxies name this content, see configpb.PolicyRef.
	ref     string
	observe bool
	program *rego.Program
	// fingerprint is of what the program was made from here.
	fingerprint [sha256.Size]byte
	// weight is about the memory of the program, in bytes, 0 for a bundle.
	weight int
	bundle bool
	counts *policyCounts
}

func newPolicy(name string, r *configpb.RegoPolicy, fp [sha256.Size]byte) *policy {
	p := &policy{name: name, ref: r.Ref(), observe: r.GetObserve(), fingerprint: fp, bundle: r.GetBundle() != nil}
	if !p.bundle {
		p.weight = programBytes + programBytesEach*len(r.GetModule())
	}
	return p
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

// find gives a policy as a proxy names it. It may be retired; nil if it is not known.
func (s *policySet) find(ref string, now time.Time) (p *policy, retired bool) {
	if p := s.refs[ref]; p != nil {
		return p, false
	}
	return s.retired.find(ref, now), true
}

// had is the content that proxies name so, in force or retired, else the one in force
// under the same name, else nil.
func (s *policySet) had(name, ref string) *policy {
	was := s.policies[name]
	if r, ok := s.retired[ref]; ok && (was == nil || was.ref != ref) {
		return r.policy
	}
	return was
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
		was := old.had(name, all[name].Ref())
		if isRemote(all[name]) {
			if next[name], elsewhere[name], err = p.remotePolicy(ctx, name, fp, all[name], was); err != nil {
				return fmt.Errorf("RegoPolicy %s%s: %w", name, at(all[name].GetSource()), err)
			}
			continue
		}
		if was != nil && was.fingerprint == fp {
			next[name] = was
			continue
		}
		program, err := p.compile(ctx, all[name])
		if err != nil {
			return fmt.Errorf("RegoPolicy %s%s: %w", name, at(all[name].GetSource()), err)
		}
		next[name] = newPolicy(name, all[name], fp)
		next[name].program = program
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
	next := newPolicy(name, r, fp)
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
	set := &policySet{revision: p.revision(), policies: next, refs: make(map[string]*policy, len(next)), issuers: issuers, changed: make(chan struct{})}
	for _, one := range next {
		set.refs[one.ref] = one
	}
	var dropped int
	set.retired, dropped = old.retired.following(old.policies, next, now, now.Add(p.retire))
	if dropped > 0 {
		p.log.WarnContext(ctx, "there is no room for all earlier contents of policies; proxies whose routes still name them are refused", slog.Int("dropped", dropped))
	}
	set.forgotten = old.forgottenBy(set)
	p.swapped(set)
	p.current.Store(set)
	close(old.changed)
	p.log.InfoContext(ctx, "policies in force", slog.String("revision", set.revision), slog.Int("policies", len(next)), slog.Int("retired", len(set.retired)), slog.Int("issuers", len(issuers)))
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
