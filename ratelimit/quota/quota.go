// Package quota turns the mesh's QuotaPolicies into limits and finds the one that
// a descriptor names.
//
// Envoy sends a descriptor per limit: the entries "writ.policy" with
// "<namespace>/<name>" and "writ.limit" with the limit's index (package configpb
// has these names), then, for limits that hold something while a request runs,
// "writ.hold" with the request's own name and "writ.done" once it is over, then one
// entry per dimension with the dimension's text as key. The counter is kept under
// policy, limit, how the limit counts, and the dimensions with their values.
//
// Behind the policy's name stands which content of it the proxy's routes go with
// (configpb.PolicyRef). A table knows the contents that were replaced for a while, and
// decides by the one that is named, on the same counters.
package quota

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	rlsv3 "github.com/envoyproxy/go-control-plane/envoy/service/ratelimit/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/writ-mesh/writ/internal/atomicfile"
	configpb "github.com/writ-mesh/writ/proto/writ/config/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
	"github.com/writ-mesh/writ/ratelimit/plans"
)

// maxKey is from where on a key is replaced by its hash, in bytes: what callers
// send must not decide how much memory a counter takes.
const maxKey = 512

// Table is the policies in force, and what those were that they replaced. It is not
// changed once made.
type Table struct {
	limits map[string][]*Limit // by resource name
	// names are the resource names of the contents in force, and earlier the other
	// contents, by what proxies name them.
	names   map[string]string
	earlier map[string]*content
}

// Limit is one limit of a policy.
type Limit struct {
	// Rule is what may pass.
	Rule limit.Limit
	// ID names the limit in refusals: "QuotaPolicy <namespace>/<name> limit <index>".
	ID string
	// Policy is "<namespace>/<name>", Index the limit's place in it.
	Policy string
	Index  int
	// Observe: count, refuse nothing.
	Observe bool
	// Mode is where it is counted.
	Mode limit.Mode
	// Cost is nil if each request takes one.
	Cost *Cost
	// Told says that whoever asks wants to know that it was answered.
	Told bool
	// Earlier says that the policy has another content now.
	Earlier bool
	// Described is what answers tell about the limit. Do not change it.
	Described *rlsv3.RateLimitResponse_RateLimit

	prefix string   // of the counters' keys
	per    []string // the dimensions
	plan   *planned // nil if Rule holds for all callers
	fair   *sharing // nil if each caller has a limit of its own
}

// TellsCallersApart says whether the limit has dimensions.
func (l *Limit) TellsCallersApart() bool { return len(l.per) > 0 }

// New compiles policies by resource name; callers' plans are in the book, nil if there
// is none. The error names the policy and its source; nothing of the set is taken then.
func New(policies map[string]*configpb.QuotaPolicy, book *plans.Book) (*Table, error) {
	t := &Table{limits: make(map[string][]*Limit, len(policies)), names: make(map[string]string, len(policies))}
	var problems []error
	for resource, p := range policies {
		limits, err := compile(p, book)
		if err != nil {
			problems = append(problems, fmt.Errorf("QuotaPolicy %s/%s (%s): %w", p.GetNamespace(), p.GetName(), p.GetSource(), err))
			continue
		}
		if name := p.GetNamespace() + "/" + p.GetName(); name != resource {
			problems = append(problems, fmt.Errorf("QuotaPolicy %s has the resource name %q", name, resource))
			continue
		}
		t.limits[resource] = limits
		t.names[p.Ref()] = resource
	}
	if len(problems) > 0 {
		slices.SortFunc(problems, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		return nil, errors.Join(problems...)
	}
	return t, nil
}

func compile(p *configpb.QuotaPolicy, book *plans.Book) ([]*Limit, error) {
	if n := len(p.GetLimits()); n > configpb.MaxQuotaLimits {
		return nil, fmt.Errorf("has %d limits, at most %d are kept", n, configpb.MaxQuotaLimits)
	}
	policy := p.GetNamespace() + "/" + p.GetName()
	var out []*Limit
	for i, l := range p.GetLimits() {
		if err := l.GetEvery().CheckValid(); err != nil {
			return nil, fmt.Errorf("limits[%d].every: %w", i, err)
		}
		rule, mode, err := ruleOf(l)
		if err != nil {
			return nil, fmt.Errorf("limits[%d]: %w", i, err)
		}
		cost, err := compileCost(l.GetCost(), rule)
		if err != nil {
			return nil, fmt.Errorf("limits[%d].cost: %w", i, err)
		}
		plan, err := compilePlan(l.GetPlan(), l.GetPer(), book)
		if err != nil {
			return nil, fmt.Errorf("limits[%d].plan: %w", i, err)
		}
		fair, err := compileFair(l, rule, mode, book)
		if err != nil {
			return nil, fmt.Errorf("limits[%d].fair: %w", i, err)
		}
		id := fmt.Sprintf("QuotaPolicy %s limit %d", policy, i)
		out = append(out, &Limit{
			Rule: rule, ID: id, Policy: policy, Index: i, Observe: p.GetObserve(), Told: p.GetTold(), Mode: mode, Cost: cost,
			Described: describe(rule, id),
			prefix:    prefix(policy, i, rule), per: l.GetPer(), plan: plan, fair: fair,
		})
	}
	return out, nil
}

// keyBegins begins all keys.
const keyBegins = "writ:{"

// prefix begins the keys of a limit's counters. The hash tag keeps one policy's
// counters together on a Redis cluster. An edited limit that counts by another
// algorithm has other counters, because it could not read those it had.
func prefix(policy string, index int, rule limit.Limit) string {
	return keyBegins + policy + "}:" + strconv.Itoa(index) + ":" + rule.Algorithm().Code()
}

// describe writes a window in the greatest unit that measures it. A window with
// a fraction of a second has none.
func describe(l limit.Limit, name string) *rlsv3.RateLimitResponse_RateLimit {
	d := &rlsv3.RateLimitResponse_RateLimit{Name: name, RequestsPerUnit: l.Requests()}
	for _, u := range []struct {
		unit   rlsv3.RateLimitResponse_RateLimit_Unit
		length time.Duration
	}{
		{rlsv3.RateLimitResponse_RateLimit_DAY, 24 * time.Hour},
		{rlsv3.RateLimitResponse_RateLimit_HOUR, time.Hour},
		{rlsv3.RateLimitResponse_RateLimit_MINUTE, time.Minute},
		{rlsv3.RateLimitResponse_RateLimit_SECOND, time.Second},
	} {
		if l.Window()%u.length == 0 {
			d.Unit = u.unit
			if n := l.Window() / u.length; n > 1 {
				d.UnitMultiplier = wrapperspb.UInt32(uint32(n)) //nolint:gosec // at most MaxQuotaEvery in seconds
			}
			return d
		}
	}
	return d
}

// Len is the number of policies.
func (t *Table) Len() int { return len(t.limits) }

// Limits are those of all policies, by policy and place in it.
func (t *Table) Limits() (all []*Limit) {
	for _, name := range slices.Sorted(maps.Keys(t.limits)) {
		all = append(all, t.limits[name]...)
	}
	return all
}

// Match is what a descriptor says beside its limit.
type Match struct {
	// Key is that of the counter.
	Key string
	// Hold is the request's own name, empty if it says none.
	Hold string
	// Done: the request is over.
	Done bool
	// Unknown: the content that is named is not known. The limit is that of the newest.
	Unknown bool
	// Numbers are the caller's.
	Numbers
	// Shared says with whom the caller shares the limit.
	Shared Shared
}

// maxHold bounds the name of a request, in bytes; Envoys send 36.
const maxHold = 64

// find gives the limits of a policy as a proxy names it at now. Of a content that is not
// known it gives those of the newest, and known is false.
func (t *Table) find(ref string, now time.Time) (limits []*Limit, known bool) {
	if c := t.earlier[ref]; c != nil && now.Before(c.until) {
		return c.limits, true
	}
	name, inForce := t.names[ref]
	if inForce {
		return t.limits[name], true
	}
	name = configpb.PolicyName(ref)
	limits, known = t.limits[name]
	return limits, known && name == ref // who names no content means the newest
}

// Match finds the limit that a descriptor names at now and the key of its counter; nil
// if the table does not have it.
func (t *Table) Match(d *commonv3.RateLimitDescriptor, now time.Time) (*Limit, Match) {
	entries := d.GetEntries()
	if len(entries) < 2 || entries[0].GetKey() != configpb.QuotaPolicyKey || entries[1].GetKey() != configpb.QuotaLimitKey {
		return nil, Match{}
	}
	limits, known := t.find(entries[0].GetValue(), now)
	i, err := strconv.ParseUint(entries[1].GetValue(), 10, 16)
	if err != nil || i >= uint64(len(limits)) {
		return nil, Match{}
	}
	m := Match{Unknown: !known}
	entries = entries[2:]
	if len(entries) > 0 && entries[0].GetKey() == configpb.QuotaHoldKey {
		if m.Hold = entries[0].GetValue(); len(m.Hold) > maxHold {
			return nil, Match{}
		}
		entries = entries[1:]
	}
	if len(entries) > 0 && entries[0].GetKey() == configpb.QuotaDoneKey {
		m.Done = true
		entries = entries[1:]
	}
	m.Key, m.Numbers, m.Shared = limits[i].key(entries), limits[i].numbers(entries), limits[i].shared(entries)
	return limits[i], m
}

// key appends the dimensions to the prefix, so that no two lists give one key.
func (l *Limit) key(entries []*commonv3.RateLimitDescriptor_Entry) string {
	return l.keyOf(l.prefix, entries)
}

func (l *Limit) keyOf(prefix string, entries []*commonv3.RateLimitDescriptor_Entry) string {
	n := len(prefix)
	for _, e := range entries {
		n += 2 + len(e.GetKey()) + len(e.GetValue())
	}
	var b strings.Builder
	b.Grow(n + 8)
	b.WriteString(prefix)
	for _, e := range entries {
		b.WriteByte('&')
		escape(&b, e.GetKey())
		b.WriteByte('=')
		escape(&b, e.GetValue())
	}
	if b.Len() <= maxKey {
		return b.String()
	}
	sum := sha256.Sum256([]byte(b.String()))
	return prefix + "#" + hex.EncodeToString(sum[:])
}

// separators, and the sign that escapes them. Identities and addresses have none
// of them, so that keys stay readable.
const separators = "%=&"

func escape(b *strings.Builder, s string) {
	if !strings.ContainsAny(s, separators) {
		b.WriteString(s)
		return
	}
	for _, c := range []byte(s) {
		if strings.IndexByte(separators, c) >= 0 {
			fmt.Fprintf(b, "%%%02x", c)
			continue
		}
		b.WriteByte(c)
	}
}

// Save keeps policies in a file, for a start while pilot is away.
func Save(path string, policies map[string]*configpb.QuotaPolicy) error {
	names := make([]string, 0, len(policies))
	for name := range policies {
		names = append(names, name)
	}
	slices.Sort(names)
	list := make([]json.RawMessage, 0, len(names))
	for _, name := range names {
		one, err := protojson.Marshal(policies[name])
		if err != nil {
			return fmt.Errorf("save %s: %w", name, err)
		}
		list = append(list, one)
	}
	data, err := json.MarshalIndent(list, "", " ")
	if err != nil {
		return fmt.Errorf("save policies: %w", err)
	}
	return atomicfile.Write(path, append(data, '\n'), 0o600)
}

// Restore reads what Save wrote; nil if there is no such file. A file that cannot
// be read is an error, and the caller goes on without it.
func Restore(path string) (map[string]*configpb.QuotaPolicy, error) {
	data, err := os.ReadFile(path) //nolint:gosec // the service's own state
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("restore policies: %w", err)
	}
	var list []json.RawMessage
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("restore policies from %s: %w", path, err)
	}
	out := make(map[string]*configpb.QuotaPolicy, len(list))
	for _, one := range list {
		p := &configpb.QuotaPolicy{}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(one, p); err != nil {
			return nil, fmt.Errorf("restore policies from %s: %w", path, err)
		}
		out[p.GetNamespace()+"/"+p.GetName()] = p
	}
	return out, nil
}

// FromResources takes what the subscription gives.
func FromResources(resources map[string]proto.Message) (map[string]*configpb.QuotaPolicy, error) {
	out := make(map[string]*configpb.QuotaPolicy, len(resources))
	for name, m := range resources {
		p, ok := m.(*configpb.QuotaPolicy)
		if !ok {
			return nil, fmt.Errorf("resource %s is a %T, not a QuotaPolicy", name, m)
		}
		out[name] = p
	}
	return out, nil
}

// all are the limits of everything that decides.
func (t *Table) all() iter.Seq[*Limit] {
	return func(yield func(*Limit) bool) {
		for _, limits := range t.limits {
			for _, l := range limits {
				if !yield(l) {
					return
				}
			}
		}
		for _, c := range t.earlier {
			for _, l := range c.limits {
				if !yield(l) {
					return
				}
			}
		}
	}
}

// IDs are the IDs of all limits, those of earlier contents included.
func (t *Table) IDs() map[string]bool {
	ids := make(map[string]bool)
	for l := range t.all() {
		ids[l.ID] = true
	}
	return ids
}

// Plans are the tables of plans that these name.
func (t *Table) Plans() map[string]bool {
	names := make(map[string]bool)
	for l := range t.all() {
		if l.plan != nil {
			names[l.plan.table.Name()] = true
		}
		if l.fair != nil && l.fair.plan != nil {
			names[l.fair.plan.table.Name()] = true
		}
	}
	return names
}
