package descriptors

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	commonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"

	ratelimitpb "github.com/writ-mesh/writ/proto/writ/ratelimit/v1"
	"github.com/writ-mesh/writ/ratelimit/limit"
)

const example = `
domain: test
descriptors:
  - key: path
    value: api
    descriptors:
      - key: user
        rate_limit: {unit: second, requests_per_unit: 5}
      - key: user
        value: root
        shadow_mode: true
        rate_limit: {unit: Minute, requests_per_unit: 10, name: root, replaces: [{name: plain}]}
  - key: user
    rate_limit: {unit: hour, requests_per_unit: 20, name: plain}
  - key: user
    value: free           # no rate_limit: let through
  - key: user
    value: 7
    rate_limit: {unlimited: true}
  - key: file
    value: img/*
    share_threshold: true
    rate_limit: {unit: day, requests_per_unit: 3}
    descriptors:
      - key: size
        rate_limit: {unit: week, requests_per_unit: 4}
  - key: route
    value: /api/*/x/*/y
    quota_mode: true
    rate_limit: {unit: month, requests_per_unit: 1}
  - key: anything*
    rate_limit: {unit: year, requests_per_unit: 1}
`

func desc(pairs ...string) *commonv3.RateLimitDescriptor {
	d := &commonv3.RateLimitDescriptor{}
	for i := 0; i < len(pairs); i += 2 {
		d.Entries = append(d.Entries, &commonv3.RateLimitDescriptor_Entry{Key: pairs[i], Value: pairs[i+1]})
	}
	return d
}

func parseOne(t testing.TB, text string) *Domain {
	t.Helper()
	domains, err := parse("f.yaml", []byte(text))
	if err != nil || len(domains) != 1 {
		t.Fatalf("%d domains, error %v", len(domains), err)
	}
	return domains[0]
}

func TestMatch(t *testing.T) {
	d := parseOne(t, example)
	for _, c := range []struct {
		pairs   []string
		id, key string
	}{
		{[]string{"path", "api", "user", "ann"}, "test.path_api.user", "test_path_api_user_ann"},
		{[]string{"path", "api", "user", "root"}, "test.path_api.user_root", "test_path_api_user_root"},
		{[]string{"path", "api"}, "", ""},
		{[]string{"path", "api", "user", "ann", "more", "x"}, "", ""},
		{[]string{"path", "web", "user", "ann"}, "", ""},
		{[]string{"user", "ann"}, "test.user", "test_user_ann"},
		{[]string{"user", ""}, "test.user", "test_user_"},
		{[]string{"user", "free"}, "", ""},
		{[]string{"user", "7"}, "test.user_7", "test_user_7"},
		{[]string{"file", "img/a"}, "test.file_img/*", "test_file_img/*"},
		{[]string{"file", "img/"}, "test.file_img/*", "test_file_img/*"},
		{[]string{"file", "img/b", "size", "1"}, "test.file_img/*.size", "test_file_img/*_size_1"},
		{[]string{"file", "css/a"}, "", ""},
		{[]string{"route", "/api/1/x/2/y"}, "test.route_/api/*/x/*/y", "test_route_/api/1/x/2/y"},
		{[]string{"route", "/api/1/x/y"}, "", ""},
		{[]string{"anything", "goes"}, "test.anything*", "test_anything_goes"},
		{nil, "", ""},
		{[]string{"unknown", ""}, "", ""},
	} {
		m, ok := d.Match(desc(c.pairs...))
		if ok != (c.id != "") || ok && (m.Rule.ID != c.id || m.Key != c.key) {
			t.Errorf("%q: matched %v %+v %q, want %q %q", c.pairs, ok, m.Rule, m.Key, c.id, c.key)
		}
	}
	root, _ := d.Match(desc("path", "api", "user", "root"))
	if r := root.Rule; !r.Shadow || r.Name != "root" || len(r.Replaces) != 1 || r.Replaces[0] != "plain" || r.Limit.Requests() != 10 {
		t.Errorf("rule is %+v", r)
	}
	if free, _ := d.Match(desc("user", "7")); !free.Rule.Unlimited {
		t.Error("unlimited is lost")
	}
}

func TestOverride(t *testing.T) {
	d := parseOne(t, example)
	in := desc("any", "thing")
	in.Limit = &commonv3.RateLimitDescriptor_RateLimitOverride{RequestsPerUnit: 7, Unit: typev3.RateLimitUnit_MINUTE}
	if m, ok := d.Match(in); !ok || m.Rule.Limit.Requests() != 7 || m.Key != "test_any_thing" {
		t.Errorf("got %v %+v", ok, m)
	}
	in.Limit.Unit = typev3.RateLimitUnit_UNKNOWN
	if _, ok := d.Match(in); ok {
		t.Error("a limit without a unit was taken")
	}
}

func TestParseSaysWhere(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"no YAML", "domain: [", "f.yaml:1: "},
		{"a list", "- a", "f.yaml:1: the file must be a mapping"},
		{"no domain", "descriptors: []", "f.yaml:1: domain is missing or empty"},
		{"empty domain", "domain: ''", "f.yaml:1: domain is missing or empty"},
		{"unknown key", "domain: a\ndescriptor: []", `f.yaml:2: unknown key "descriptor"`},
		{"key of a wrong type", "domain: a\n1: x", `f.yaml:2: unknown key "1"`},
		{"twice", "domain: a\ndomain: b", "f.yaml:2: "},
		{"descriptors no list", "domain: a\ndescriptors: {}", "f.yaml:2: descriptors must be a list"},
		{"descriptor no mapping", "domain: a\ndescriptors:\n- x", "f.yaml:3: a descriptor must be a mapping"},
		{"no key", "domain: a\ndescriptors:\n- value: x", "f.yaml:3: a descriptor has no key"},
		{"same composite", "domain: a\ndescriptors:\n- key: k\n  value: v\n- key: k\n  value: v", "f.yaml:5: descriptor a.k_v is there twice"},
		{"unit", "domain: a\ndescriptors:\n- key: k\n  rate_limit:\n    unit: fortnight", `f.yaml:5: unit "fortnight"`},
		{"unit unknown", "domain: a\ndescriptors:\n- key: k\n  rate_limit:\n    unit: unknown", `f.yaml:5: unit "unknown"`},
		{"no unit", "domain: a\ndescriptors:\n- key: k\n  rate_limit: {requests_per_unit: 1}", "f.yaml:4: rate_limit needs a unit"},
		{"unlimited with unit", "domain: a\ndescriptors:\n- key: k\n  rate_limit: {unlimited: true, unit: day}", "f.yaml:4: an unlimited rate_limit has no unit"},
		{"negative", "domain: a\ndescriptors:\n- key: k\n  rate_limit: {unit: day, requests_per_unit: -1}", "f.yaml:4: requests_per_unit must be a whole number"},
		{"huge", "domain: a\ndescriptors:\n- key: k\n  rate_limit: {unit: day, requests_per_unit: 4294967296}", "f.yaml:4: requests_per_unit must be a whole number"},
		{"text", "domain: a\ndescriptors:\n- key: k\n  rate_limit: {unit: day, requests_per_unit: many}", "f.yaml:4: requests_per_unit must be a whole number"},
		{"replaces itself", "domain: a\ndescriptors:\n- key: k\n  rate_limit: {unit: day, name: n, replaces: [{name: n}]}", "f.yaml:4: a rate_limit replaces itself"},
		{"replaces nothing", "domain: a\ndescriptors:\n- key: k\n  rate_limit: {unit: day, replaces: [{name: ''}]}", "f.yaml:4: an entry of replaces has no name"},
		{"replaces no list", "domain: a\ndescriptors:\n- key: k\n  rate_limit: {unit: day, replaces: n}", "f.yaml:4: replaces must be a list"},
		{"share without a star", "domain: a\ndescriptors:\n- key: k\n  share_threshold: true", "f.yaml:3: share_threshold needs"},
		{"shadow", "domain: a\ndescriptors:\n- key: k\n  shadow_mode: maybe", "f.yaml:4: shadow_mode must be true or false"},
		{"value", "domain: a\ndescriptors:\n- key: k\n  value: [x]", "f.yaml:4: value must be text"},
		{"second document", "domain: a\n---\ndomain: a", `f.yaml:3: domain "a" is already at f.yaml:1`},
		{"an anchor in itself", "domain: a\ndescriptors: &d\n- key: k\n  descriptors: *d", "f.yaml:"},
		{"a merge of itself", "domain: a\ndescriptors:\n- &d\n  key: k\n  <<: *d", "f.yaml:"},
	} {
		t.Run(c.name, func(t *testing.T) {
			domains, err := parse("f.yaml", []byte(c.text))
			if err == nil || !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("error %v, want it to begin with %q (%d domains)", err, c.want, len(domains))
			}
		})
	}
}

func TestParseTakes(t *testing.T) {
	for name, c := range map[string]struct {
		text  string
		rules int
	}{
		"nothing":            {"", 0},
		"only a comment":     {"# later\n", 0},
		"a bare domain":      {"domain: a", 0},
		"empty lists":        {"domain: a\ndescriptors:\n- key: k\n  descriptors:\n  rate_limit:\n", 0},
		"metadata":           {"domain: a\ndescriptors:\n- key: k\n  metadata: {x: [1, {y: z}]}\n  detailed_metric: true\n  value_to_metric: false", 0},
		"an anchor":          {"domain: a\ndescriptors:\n- key: k\n  rate_limit: &l {unit: day, requests_per_unit: 1}\n- key: j\n  rate_limit: *l", 2},
		"a merge key":        {"domain: a\ndescriptors:\n- key: k\n  rate_limit: &l {unit: day, requests_per_unit: 1}\n- key: j\n  rate_limit: {<<: *l, requests_per_unit: 2}", 2},
		"two documents":      {"domain: a\n---\ndomain: b\ndescriptors: [{key: k, rate_limit: {unit: day}}]", 1},
		"numbers as values":  {"domain: 1\ndescriptors: [{key: true, value: 1.50, rate_limit: {unit: day, requests_per_unit: 0x10}}]", 1},
		"none may pass":      {"domain: a\ndescriptors: [{key: k, rate_limit: {unit: day, requests_per_unit: 0}}]", 1},
		"the greatest limit": {"domain: a\ndescriptors: [{key: k, rate_limit: {unit: second, requests_per_unit: 4294967295}}]", 1},
	} {
		domains, err := parse("f.yaml", []byte(c.text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		rules := 0
		for _, d := range domains {
			rules += len(d.Rules())
		}
		if rules != c.rules {
			t.Errorf("%s: %d rules, want %d", name, rules, c.rules)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func limited(domain, n string) string {
	return "domain: " + domain + "\ndescriptors:\n- key: k\n  rate_limit: {unit: day, requests_per_unit: " + n + "}\n"
}

func requestsOf(t *testing.T, s *Set, domain string) uint32 {
	t.Helper()
	d := s.Domain(domain)
	if d == nil {
		t.Fatalf("domain %s is not there", domain)
	}
	m, _ := d.Match(desc("k", "v"))
	return m.Rule.Limit.Requests()
}

func TestLoadKeepsWhatIsGood(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "sub", "b.yml")
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "..data"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, a, limited("a", "1"))
	write(t, b, limited("b", "1"))
	write(t, filepath.Join(dir, "..data", "c.yaml"), "hidden")
	write(t, filepath.Join(dir, "README.md"), "no configuration")
	set, err := Load(dir, nil, false)
	if err != nil || len(set.Names()) != 2 {
		t.Fatalf("%v, %v", set.Names(), err)
	}

	write(t, a, "domain: a\ndescriptors:\n- key: k\n  rate_limit: {unit: eon}")
	write(t, b, limited("b", "2"))
	set, err = Load(dir, set, false)
	if err == nil || !strings.HasPrefix(err.Error(), a+":4: unit") {
		t.Errorf("error %v, want the place of the mistake", err)
	}
	if requestsOf(t, set, "a") != 1 || requestsOf(t, set, "b") != 2 {
		t.Error("the broken domain is not as before, or the good one not as it is now")
	}

	write(t, a, limited("a", "3"))
	write(t, filepath.Join(dir, "0.yaml"), limited("a", "9"))
	set, err = Load(dir, set, false)
	if err == nil || !strings.Contains(err.Error(), `0.yaml:1: domain "a" is already at `+a+":1") {
		t.Errorf("error %v, want the second claim to the domain", err)
	}
	if requestsOf(t, set, "a") != 3 {
		t.Error("a second file took a domain from the one that had it")
	}

	if err := os.Remove(a); err != nil {
		t.Fatal(err)
	}
	set, err = Load(dir, set, false)
	if err != nil || requestsOf(t, set, "a") != 9 {
		t.Errorf("after the first owner is gone: %v", err)
	}
	if _, err := Load(filepath.Join(dir, "nowhere"), nil, false); err == nil {
		t.Error("a folder that is not there is no error")
	}
}

// TestOneOfAHundredIsBroken: the others are taken and go on being updated, and the
// broken one keeps what it had.
func TestOneOfAHundredIsBroken(t *testing.T) {
	dir := t.TempDir()
	file := func(i int) string { return filepath.Join(dir, fmt.Sprintf("%02d.yaml", i)) }
	all := func(requests string) {
		for i := range 100 {
			write(t, file(i), limited(fmt.Sprintf("d%02d", i), requests))
		}
	}
	all("1")
	set, err := Load(dir, nil, false)
	if err != nil || len(set.Names()) != 100 {
		t.Fatal(len(set.Names()), err)
	}
	for _, broken := range []struct{ text, problem string }{
		{"domain: d42\ndescriptors:\n- key: k\n  rate_limit: {unit: eon}", ":4: unit"},
		{"domain: d42\ndescriptors:\n- {key: k}\n- {key: k}", ":4: descriptor d42.k is there twice"},
		{limited("d07", "9"), `:1: domain "d07" is already at `},
		{"domain: [", ":1: "},
	} {
		for _, requests := range []string{"2", "3"} {
			all(requests)
			write(t, file(42), broken.text)
			if set, err = Load(dir, set, false); err == nil || !strings.Contains(err.Error(), file(42)+broken.problem) || strings.Count(err.Error(), "\n") != 0 {
				t.Errorf("%q: error %v, want %q with its file alone", broken.text, err, broken.problem)
			}
			updated := 0
			for _, name := range set.Names() {
				if fmt.Sprint(requestsOf(t, set, name)) == requests {
					updated++
				}
			}
			if updated != 99 {
				t.Errorf("%q: %d domains are updated, want 99", broken.text, updated)
			}
		}
		all("1")
		if set, err = Load(dir, set, false); err != nil {
			t.Error(err)
		}
	}
}

// TestMergedDomains: with merging several files make a domain, and what two of them say
// is a mistake of the second, with its place.
func TestMergedDomains(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml")
	write(t, a, limited("d", "1"))
	write(t, b, "domain: d\ndescriptors:\n- {key: l, value: 'x*', rate_limit: {unit: day, requests_per_unit: 5}}")
	set, err := Load(dir, nil, true)
	if err != nil {
		t.Fatal(err)
	}
	of := func(key string) uint32 {
		if m, ok := set.Domain("d").Match(desc(key, "xyz")); ok {
			return m.Rule.Limit.Requests()
		}
		return 0
	}
	if of("k") != 1 || of("l") != 5 || len(set.Domain("d").Rules()) != 2 {
		t.Errorf("k %d, l %d", of("k"), of("l"))
	}
	write(t, a, limited("d", "2"))
	write(t, b, "domain: d\ndescriptors: {")
	if set, err = Load(dir, set, true); err == nil || of("k") != 2 || of("l") != 5 {
		t.Errorf("one part is broken: k %d, l %d, %v", of("k"), of("l"), err)
	}
	write(t, b, limited("d", "7"))
	if set, err = Load(dir, set, true); err == nil || !strings.Contains(err.Error(), b+":1: descriptor d.k is there already") || of("k") != 2 {
		t.Errorf("two parts say the same: k %d, %v", of("k"), err)
	}
}

// TestFromServer: what a management server sends means what the file of the same words
// means, and mistakes cost their own domain only.
func TestFromServer(t *testing.T) {
	good := &ratelimitpb.DomainConfig{Name: "r", Domain: "d", Descriptors: []*ratelimitpb.DomainDescriptor{
		{
			Key: "k", Value: "x*", ShadowMode: true, QuotaMode: true, DetailedMetric: true,
			Metadata:    &structpb.Struct{Fields: map[string]*structpb.Value{"a": structpb.NewStringValue("1"), "b": structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{structpb.NewNumberValue(1.5), structpb.NewBoolValue(true), structpb.NewNullValue()}})}},
			RateLimit:   &ratelimitpb.DomainLimit{Unit: 7, RequestsPerUnit: 3, Name: "n", Replaces: []*ratelimitpb.Replaced{{Name: "m"}}},
			Descriptors: []*ratelimitpb.DomainDescriptor{{Key: "l", RateLimit: &ratelimitpb.DomainLimit{Unlimited: true}}},
		},
	}}
	set, err := FromServer([]*ratelimitpb.DomainConfig{good}, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	file, err := parse("f", []byte("domain: d\ndescriptors:\n- key: k\n  value: 'x*'\n  shadow_mode: true\n  quota_mode: true\n  detailed_metric: true\n  metadata: {a: '1', b: [1.5, true, null]}\n  rate_limit: {unit: week, requests_per_unit: 3, name: n, replaces: [{name: m}]}\n  descriptors: [{key: l, rate_limit: {unlimited: true}}]"))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range file[0].Rules() {
		got := set.Domain("d").Rules()[i]
		if diff := cmp.Diff(want, got, protocmp.Transform(), cmp.AllowUnexported(limit.Limit{})); diff != "" {
			t.Errorf("rule %d (-file +server):\n%s", i, diff)
		}
	}
	if m, ok := set.Domain("d").Match(desc("k", "xy")); !ok || m.Rule.Metadata.GetFields()["a"].GetStringValue() != "1" {
		t.Errorf("%+v, %v", m, ok)
	}
	other := &ratelimitpb.DomainConfig{Name: "o", Domain: "other"}
	for problem, bad := range map[string]*ratelimitpb.DomainConfig{
		"resource r: unit \"99\"":                               {Name: "r", Domain: "d", Descriptors: []*ratelimitpb.DomainDescriptor{{Key: "k", RateLimit: &ratelimitpb.DomainLimit{Unit: 99}}}},
		"resource r: a descriptor has no key":                   {Name: "r", Domain: "d", Descriptors: []*ratelimitpb.DomainDescriptor{{}}},
		"resource r: domain is missing":                         {Name: "r"},
		"resource r: domain \"other\" is already at resource o": {Name: "r", Domain: "other"},
	} {
		got, err := FromServer([]*ratelimitpb.DomainConfig{other, bad}, set, false)
		if err == nil || !strings.Contains(err.Error(), problem) {
			t.Errorf("error %v, want %q", err, problem)
		}
		if got.Domain("other") == nil || (got.Domain("d") == nil) != strings.Contains(problem, "already") {
			t.Errorf("%s: in force are %v", problem, got.Names())
		}
	}
	deep := &ratelimitpb.DomainDescriptor{Key: "k"}
	for range 3 * maxDepth {
		deep = &ratelimitpb.DomainDescriptor{Key: "k", Descriptors: []*ratelimitpb.DomainDescriptor{deep}}
	}
	if _, err := FromServer([]*ratelimitpb.DomainConfig{{Name: "r", Domain: "d", Descriptors: []*ratelimitpb.DomainDescriptor{deep}}}, nil, false); err == nil || !strings.Contains(err.Error(), "nested deeper") {
		t.Errorf("too deep: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte("domain: a\ndescriptors: &d\n- key: k\n  <<: {descriptors: *d}"))
	f.Add([]byte("domain: a\n---\ndomain: b\ndescriptors: [{key: k, value: '*', share_threshold: yes, rate_limit: {unit: day}}]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		domains, err := parse("f.yaml", data)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "f.yaml:") {
				t.Errorf("error without its place: %v", err)
			}
			return
		}
		for _, d := range domains {
			if d.Name == "" {
				t.Error("a domain without a name")
			}
			for _, r := range d.Rules() {
				if !strings.HasPrefix(r.ID, d.Name+".") || !r.Unlimited && r.Limit.Window() == 0 {
					t.Errorf("rule %+v", r)
				}
			}
			d.Match(desc("k", "v", "k", ""))
			d.Match(desc(strings.Repeat("k", 1000), "*"))
		}
	})
}
