package translate

import (
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"

	"github.com/writ-mesh/writ/internal/envoytest"
)

// attack is something that a client tries, in one or more spellings.
type attack struct {
	name  string
	tries []try
	// paths says that it is about paths, so that it is tried where escaped slashes are
	// decoded, too.
	paths bool
}

// try is bytes, or changes of a request over HTTP/2 (see framed). HOST in them is the
// target's own host, MARK what the test knows the request by.
type try struct {
	bytes  string
	frames []string
	// answers is how many are waited for, 1 if it is 0.
	answers int
	// passes says what the program gets nevertheless: "METHOD target", several separated
	// by commas, by targets, which are patterns separated by spaces. Where none matches
	// nothing may arrive. After "?" it may and need not.
	passes map[string]string
	// oldest is passes of the oldest Envoy where that differs.
	oldest map[string]string
	// never is what no header that the program gets may contain.
	never string
	// gateways says that it is for clients of gateways only.
	gateways bool
}

// TestAttacks sends what some proxy or other has let through to Envoys as pilot
// configures them, before each kind of policy. docs/security/attacks.md has the reasons.
func TestAttacks(t *testing.T) {
	for i, bin := range envoytest.All(t) {
		version := []string{envoytest.Newest, envoytest.Oldest}[i]
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			m := startAttacked(t, bin, byte(210+i))
			m.alive(t)
			results := m.sendAll(attacks())
			m.alive(t) // after all of them
			m.collect(t, results)
			for _, a := range attacks() {
				t.Run(a.name, func(t *testing.T) {
					for _, r := range results {
						if r.attack == a.name {
							m.check(t, r)
						}
					}
				})
			}
		})
	}
}

// attackResult is one try at one target.
type attackResult struct {
	try
	attack, target, mark string
	codes                []int
	arrived              []*attackedRequest
	checked              map[string][]*authv3.AttributeContext_HttpRequest
}

// sendAll makes every try at every target, many at once: a connection that Envoy ends
// for what it got stays open for a second.
func (m *attackedMesh) sendAll(all []attack) []*attackResult {
	var out []*attackResult
	for _, a := range all {
		for _, target := range slices.Sorted(maps.Keys(m.targets)) {
			if !a.paths && strings.HasPrefix(target, "strict-") {
				continue
			}
			for _, try := range a.tries {
				if try.gateways && !strings.HasPrefix(target, "gateway-") {
					continue
				}
				out = append(out, &attackResult{try: try, attack: a.name, target: target, mark: strconv.Itoa(len(out))})
			}
		}
	}
	queue := make(chan *attackResult)
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			for r := range queue {
				m.send(r)
			}
		})
	}
	for _, r := range out {
		queue <- r
	}
	close(queue)
	wg.Wait()
	return out
}

func (m *attackedMesh) send(r *attackResult) {
	_, host := attackedAt(r.target)
	if r.frames != nil {
		r.codes = m.frames(r.target, framed(host, append(r.frames, "+"+attackMark+": "+r.mark)...))
		return
	}
	r.codes = m.raw(r.target, strings.NewReplacer("HOST", host, "MARK", r.mark).Replace(r.bytes), max(r.answers, 1))
}

// collect gives each result what arrived of it.
func (m *attackedMesh) collect(t *testing.T, results []*attackResult) {
	t.Helper()
	checked := map[string][]*authv3.AttributeContext_HttpRequest{}
	for _, c := range m.authz.take() {
		mark := c.GetHeaders()[attackMark]
		checked[mark] = append(checked[mark], c)
	}
	for _, r := range m.program.take() {
		n, err := strconv.Atoi(r.mark)
		switch {
		case r.garbage != "":
			t.Errorf("the program of %s got what is no request: %s", r.at, r.garbage)
		case r.mark == "alive":
		case err != nil || n >= len(results):
			t.Errorf("the program of %s got what nobody sent: %+v", r.at, r)
		default:
			results[n].arrived, results[n].checked = append(results[n].arrived, r), checked
		}
	}
}

func (m *attackedMesh) check(t *testing.T, r *attackResult) {
	t.Helper()
	workload, host := attackedAt(r.target)
	var got []string
	for _, a := range r.arrived {
		got = append(got, a.method+" "+a.target)
		m.judge(t, a, r.checked)
		for name, values := range a.headers {
			if all := strings.Join(values, ","); r.never != "" && strings.Contains(all, r.never) {
				t.Errorf("%s: the program got %s: %s", r.target, name, all)
			}
		}
		if a.at != workload {
			t.Errorf("%s: the program of %s got it", r.target, a.at)
		}
	}
	passes := r.passes
	if m.oldest && r.oldest != nil {
		passes = r.oldest
	}
	want := ""
	for targets, what := range passes {
		if slices.ContainsFunc(strings.Fields(targets), func(p string) bool { ok, err := path.Match(p, r.target); return ok && err == nil }) {
			want = strings.ReplaceAll(what, "HOST", host)
		}
	}
	want, maybe := strings.CutPrefix(want, "?")
	if strings.Join(got, ", ") != want && (!maybe || len(got) > 0) {
		t.Errorf("%s: %.200q %.200q: the program got %.200q, want %.200q (answers %v)", r.target, r.bytes, r.frames, got, want, r.codes)
	}
}
