package keysource

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/pilot/fetch"
	"github.com/writ-mesh/writ/pilot/model"
)

// web answers by URL and notes when it was asked, and with which tag.
type web struct {
	mu    sync.Mutex
	pages map[string]func(ctx context.Context) (fetch.Answer, error)
	asked map[string][]time.Time
	tags  map[string]string
}

func (w *web) get(ctx context.Context, r fetch.Request) (fetch.Answer, error) {
	w.mu.Lock()
	page := w.pages[r.URL]
	w.asked[r.URL] = append(w.asked[r.URL], time.Now())
	w.tags[r.URL] = r.Tag
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	if page == nil {
		return fetch.Answer{}, errors.New("nobody is there")
	}
	return page(ctx)
}

func (w *web) set(uri string, page func(context.Context) (fetch.Answer, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pages[uri] = page
}

// since gives the times at which a place was asked since the last call.
func (w *web) since(uri string) []time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.asked[uri]
	w.asked[uri] = nil
	return out
}

func says(body, control string) func(context.Context) (fetch.Answer, error) {
	return func(context.Context) (fetch.Answer, error) {
		return fetch.Answer{Body: []byte(body), Tag: "t", Header: http.Header{"Cache-Control": {control}}}, nil
	}
}

func fails(context.Context) (fetch.Answer, error) { return fetch.Answer{}, errors.New("away") }

func hangs(ctx context.Context) (fetch.Answer, error) {
	<-ctx.Done()
	return fetch.Answer{}, ctx.Err()
}

// ecKey is a P-256 key as JSON.
func ecKey(t testing.TB, kid string) string {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := k.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return fmt.Sprintf(`{"y":%q,"x":%q,"crv":"P-256","kid":%q,"kty":"EC"}`, b64(point[33:]), b64(point[1:33]), kid)
}

func keySet(keys ...string) string { return `{"keys":[` + strings.Join(keys, ",") + `]}` }

func keeper(state string) (*Keeper, *web) {
	k := New(Options{State: state, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})
	w := &web{pages: map[string]func(context.Context) (fetch.Answer, error){}, asked: map[string][]time.Time{}, tags: map[string]string{}}
	k.get = w.get
	return k, w
}

// running runs k in the bubble of a test.
func running(t *testing.T, k *Keeper) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- k.Run(ctx) }()
	synctest.Wait()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// pass lets the time of a bubble pass.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // of a synctest bubble
	synctest.Wait()
}

func place(uri string) Place {
	return Place{KeyPlace: model.KeyPlace{URI: uri}, Issuers: []string{uri}}
}

const one, other = "https://one.example/jwks", "https://other.example/jwks"

// TestLastGoodStays: what was good last stays whatever its server answers, over a
// restart, and goes when nobody wants it.
func TestLastGoodStays(t *testing.T) {
	state := t.TempDir()
	key, secret := ecKey(t, "a"), `{"kty":"oct","k":"c2VjcmV0","kid":"s"}`
	var good string
	synctest.Test(t, func(t *testing.T) {
		k, w := keeper(state)
		defer running(t, k)()
		k.Set([]Place{place(one)})
		synctest.Wait()
		if st := k.Status()[0]; st.Err == nil || st.Keys != 0 || !st.Fetched.IsZero() || time.Until(st.Next) > 2*time.Second {
			t.Errorf("before the first: %+v", st)
		}
		w.set(one, says(keySet(secret, key), ""))
		pass(5 * time.Second)
		good = k.Sets()[one]
		if !strings.Contains(good, `"alg":"ES256"`) || strings.Contains(good, "oct") || strings.Contains(good, "c2VjcmV0") {
			t.Errorf("in force: %s", good)
		}
		for name, page := range map[string]func(context.Context) (fetch.Answer, error){
			"away": fails, "slow": hangs, "empty": says("", ""), "no keys": says(`{"keys":[]}`, ""), "symmetric only": says(keySet(secret), ""),
			"a list": says("[]", ""), "cut off": says(keySet(key)[:40], ""), "a private thing": says(`{"keys":[{"kty":"swordfish"}]}`, ""),
		} {
			w.set(one, page)
			pass(10 * time.Minute)
			st := k.Status()[0]
			if k.Sets()[one] != good || st.Err == nil || st.Keys != 1 || st.Failing.IsZero() || st.Fetched.IsZero() {
				t.Errorf("%s: %+v", name, st)
			}
			if st.Err != nil && strings.Contains(st.Err.Error(), "swordfish") {
				t.Errorf("%s: the answer is told: %v", name, st.Err)
			}
			w.set(one, says(keySet(key, secret), "")) // in another order
			pass(10 * time.Minute)
			if st := k.Status()[0]; st.Err != nil || !st.Failing.IsZero() || st.Changed.After(time.Now().Add(-20*time.Minute)) {
				t.Errorf("after %s: %+v", name, st)
			}
		}
	})
	files, err := filepath.Glob(state + "/*")
	if err != nil || len(files) != 1 {
		t.Fatalf("on disk: %v %v", files, err)
	}
	if info, err := os.Stat(files[0]); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its mode: %v %v", info.Mode(), err)
	}
	synctest.Test(t, func(t *testing.T) {
		k, w := keeper(state)
		k.Set([]Place{place(one), place(other)})
		if k.Sets()[one] != good || k.Status()[0].Keys != 1 { // before anything is fetched
			t.Errorf("after a restart: %v", k.Sets())
		}
		defer running(t, k)()
		if k.Sets()[one] != good {
			t.Errorf("while its server is away: %v", k.Sets())
		}
		k.Set([]Place{place(other)})
		w.since(one)
		pass(time.Hour)
		if n := len(w.since(one)); n > 0 || k.Sets()[one] != "" {
			t.Errorf("what nobody wants is asked for %d times", n)
		}
	})
	if files, _ := filepath.Glob(state + "/*"); len(files) != 0 {
		t.Errorf("what nobody wants is kept: %v", files)
	}
}

// TestDamagedFile: what was changed on disk is not used.
func TestDamagedFile(t *testing.T) {
	s := store{dir: t.TempDir(), log: slog.New(slog.DiscardHandler)}
	text, set, err := decode([]byte(keySet(ecKey(t, "a"))))
	if err != nil || len(set.Keys) != 1 {
		t.Fatal(err)
	}
	s.save(good{Place: one, Keys: text})
	if got := s.load(one); got.Keys != text || got.Count != 1 {
		t.Fatalf("loaded %+v", got)
	}
	for name, data := range map[string]string{
		"cut off": `{"place":"` + one, "another place's": `{"place":"` + other + `","keys":` + fmt.Sprintf("%q", text) + `}`,
		"a symmetric key": `{"place":"` + one + `","keys":"{\"keys\":[{\"kty\":\"oct\",\"k\":\"AA\"}]}"}`, "too large": strings.Repeat(" ", maxFile+1),
		"not as it is written": `{"place":"` + one + `","keys":` + fmt.Sprintf("%q", strings.Replace(text, `"use":"sig",`, "", 1)) + `}`,
	} {
		if err := os.WriteFile(s.file(one), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := s.load(one); got.Keys != "" {
			t.Errorf("%s: used", name)
		}
	}
}

// TestRhythm: by what the answer says, within bounds; after a failure from a second to
// a minute.
func TestRhythm(t *testing.T) {
	body := keySet(ecKey(t, "a"))
	for name, c := range map[string]struct {
		uri, control string
		within       time.Duration
	}{
		"usual":            {one, "", refresh},
		"as it says":       {one, "public, max-age=60", time.Minute},
		"not for ever":     {one, "max-age=31536000", mostRefresh},
		"not all the time": {one, "max-age=0", leastRefresh},
		"not to be kept":   {one, "no-store, max-age=600", leastRefresh},
		"nonsense":         {one, "max-age=99999999999999999999", leastRefresh},
		"this machine":     {"http://127.0.0.1:8080/jwks", "", leastRefresh},
	} {
		synctest.Test(t, func(t *testing.T) {
			k, w := keeper("")
			w.set(c.uri, says(body, c.control))
			k.Set([]Place{place(c.uri)})
			defer running(t, k)()
			pass(5 * c.within)
			times := w.since(c.uri)
			if len(times) < 6 || len(times) > 7 {
				t.Errorf("%s: asked %d times in five times %s", name, len(times), c.within)
			}
			if next := k.Status()[0].Next; next.Before(time.Now()) || next.After(time.Now().Add(c.within)) {
				t.Errorf("%s: next %s", name, next)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		k, w := keeper("")
		w.set(one, fails)
		k.Set([]Place{place(one)})
		defer running(t, k)()
		pass(10 * time.Minute)
		times := w.since(one)
		for i, want := 1, minBackoff; i < len(times); i, want = i+1, min(2*want, maxBackoff) {
			if got := times[i].Sub(times[i-1]); got < want*3/4 || got > want*5/4 {
				t.Errorf("try %d comes %s after the one before, want about %s", i+1, got, want)
			}
		}
		if len(times) < 12 {
			t.Errorf("%d tries in ten minutes", len(times))
		}
	})
}

// TestUnknownKey: at once, but once a second at most, and not for ever if the keys
// change each time.
func TestUnknownKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, w := keeper("")
		w.set(one, says(keySet(ecKey(t, "a")), ""))
		k.Set([]Place{place(one)})
		defer running(t, k)()
		pass(30 * time.Second)
		w.since(one)
		before := k.Sets()[one]
		w.set(one, says(keySet(ecKey(t, "b")), ""))
		k.Refetch([]string{one, "https://nobody.example/"})
		synctest.Wait()
		if n := len(w.since(one)); n != 1 || k.Sets()[one] == before {
			t.Errorf("asked %d times, and in force is %s", n, k.Sets()[one])
		}
		for range 100 { // ten seconds of tokens with unknown keys
			k.Refetch([]string{one})
			pass(100 * time.Millisecond)
		}
		times := w.since(one)
		if len(times) < 9 || len(times) > 10 {
			t.Errorf("asked %d times in ten seconds", len(times))
		}
		for i := 1; i < len(times); i++ {
			if times[i].Sub(times[i-1]) < minInterval {
				t.Errorf("asked again after %s", times[i].Sub(times[i-1]))
			}
		}
		w.set(one, func(ctx context.Context) (fetch.Answer, error) { return says(keySet(ecKey(t, "c")), "")(ctx) })
		for range 600 {
			k.Refetch([]string{one})
			pass(100 * time.Millisecond)
		}
		if n := len(w.since(one)); n > restlessChanges+2 {
			t.Errorf("a set that changes each time is asked for %d times in a minute", n)
		}
	})
}

// TestRestlessKeys: of a set that changes at each look a few changes count at once, then
// one a minute, and what was held back counts although its server is away; an unknown key
// is looked for and counts at once. A set that is only written in another way is the same.
func TestRestlessKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, w := keeper("")
		var n atomic.Int64
		changing := func(ctx context.Context) (fetch.Answer, error) {
			return says(keySet(ecKey(t, fmt.Sprint(n.Add(1)))), "max-age=0")(ctx)
		}
		w.set(one, changing)
		k.Set([]Place{place(one)})
		defer running(t, k)()
		var changes []time.Time
		last, began := k.Sets()[one], time.Now()
		look := func() {
			if now := k.Sets()[one]; now != last {
				last = now
				changes = append(changes, time.Now())
			}
		}
		for time.Since(began) < 10*time.Minute {
			pass(100 * time.Millisecond)
			look()
		}
		if len(changes) < 12 || len(changes) > 14 || n.Load() < 50 {
			t.Fatalf("%d changes by %d looks in ten minutes: %v", len(changes), n.Load(), changes)
		}
		for i, at := range changes[:restlessChanges] {
			if late := at.Sub(began); late > time.Duration(i+1)*leastRefresh+time.Second {
				t.Errorf("change %d counts after %s", i, late)
			}
		}
		for i, at := range changes[restlessChanges+1:] {
			if apart := at.Sub(changes[restlessChanges+i]); apart < restlessFor-time.Second || apart > restlessFor+time.Second {
				t.Errorf("a change comes %s after the one before", apart)
			}
		}
		pass(restlessFor / 2)
		before := k.Sets()[one]
		k.Refetch([]string{one})
		pass(minInterval)
		look()
		if k.Sets()[one] == before {
			t.Error("a key that somebody misses does not count within a second")
		}
		pass(30 * time.Second)
		w.set(one, fails)
		before = k.Sets()[one]
		pass(2 * time.Minute)
		if k.Sets()[one] == before {
			t.Error("what was held back does not count while the server is away")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		k, w := keeper("")
		a, b := ecKey(t, "a"), ecKey(t, "b")
		w.set(one, says(keySet(a, b), "max-age=0"))
		k.Set([]Place{place(one)})
		defer running(t, k)()
		<-k.Changed()
		for name, body := range map[string]string{
			"in another order": keySet(b, a), "twice": keySet(a, b, a),
			"spaced":      strings.ReplaceAll(keySet(a, b), ",", " ,\n\t"),
			"more in it":  strings.ReplaceAll(keySet(b, a), `"kty"`, `"x5t":"abc","use":"sig","alg":"ES256","kty"`),
			"of a secret": keySet(`{"kty":"oct","k":"c2VjcmV0","kid":"s"}`, a, b),
		} {
			w.set(one, says(body, "max-age=0"))
			pass(5 * leastRefresh)
			select {
			case <-k.Changed():
				t.Errorf("%s: it is another set: %s", name, k.Sets()[one])
			default:
			}
		}
	})
}

// TestChangesTogether: what several places say in the same moment is told once, and what
// comes alone at once.
func TestChangesTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, w := keeper("")
		var places []Place
		for i := range 20 {
			uri := fmt.Sprintf("https://%d.example/jwks", i)
			body := keySet(ecKey(t, "a"))
			w.set(uri, func(ctx context.Context) (fetch.Answer, error) {
				time.Sleep(time.Duration(i) * settle / 40) //nolint:forbidigo // of a synctest bubble
				return says(body, "")(ctx)
			})
			places = append(places, place(uri))
		}
		k.Set(places)
		defer running(t, k)()
		told := 0
		for range 100 {
			pass(settle / 20)
			select {
			case <-k.Changed():
				told++
			default:
			}
		}
		if told != 2 || len(k.Sets()) != 20 {
			t.Errorf("%d sets are told of %d times, want twice: the first at once", len(k.Sets()), told)
		}
		w.set(one, says(keySet(ecKey(t, "a")), ""))
		k.Set(append(places, place(one)))
		synctest.Wait()
		select {
		case <-k.Changed():
		default:
			t.Error("what comes alone is not told at once")
		}
	})
}

// TestDeadOneDelaysNoOther: each place has its own rhythm.
func TestDeadOneDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, w := keeper("")
		w.set(one, hangs)
		w.set(other, says(keySet(ecKey(t, "a")), "max-age=10"))
		k.Set([]Place{place(one), place(other)})
		defer running(t, k)()
		if k.Sets()[other] == "" {
			t.Error("the other has no keys while one hangs")
		}
		pass(time.Minute)
		if n := len(w.since(other)); n < 6 {
			t.Errorf("the other was asked %d times in a minute", n)
		}
		if st := k.Status(); !errors.Is(st[0].Err, context.DeadlineExceeded) || st[1].Err != nil {
			t.Errorf("status: %+v", st)
		}
	})
}

// TestTag: a set that is there already is asked for by its tag, and where its issuer
// says that it is somewhere else, not by that one's.
func TestTag(t *testing.T) {
	const issuer = "https://issuer.example/.well-known/openid-configuration"
	synctest.Test(t, func(t *testing.T) {
		k, w := keeper("")
		body := keySet(ecKey(t, "a"))
		w.set(issuer, says(`{"jwks_uri":"`+one+`"}`, ""))
		w.set(one, says(body, "max-age=10"))
		w.set(other, says(body, "max-age=10"))
		at := model.KeyPlace{URI: issuer, Discovery: true}
		k.Set([]Place{{KeyPlace: at}})
		defer running(t, k)()
		if k.Sets()[at.Key()] == "" || w.tags[one] != "" {
			t.Errorf("first: %v, tag %q; %+v", k.Sets(), w.tags[one], k.Status())
		}
		w.set(one, func(context.Context) (fetch.Answer, error) {
			return fetch.Answer{Unchanged: true, Header: http.Header{}}, nil
		})
		pass(20 * time.Second)
		if st := k.Status()[0]; w.tags[one] != "t" || w.tags[issuer] != "" || st.Err != nil || time.Since(st.Fetched) > 20*time.Second {
			t.Errorf("again: tags %q; %+v", w.tags, st)
		}
		w.set(issuer, says(`{"jwks_uri":"`+other+`"}`, ""))
		pass(2 * refresh)
		if len(w.since(other)) == 0 || k.Status()[0].Err != nil {
			t.Errorf("elsewhere: %q; %+v", w.tags, k.Status())
		}
		for name, doc := range map[string]string{
			"no document": "<", "nothing in it": "{}", "plain text": `{"jwks_uri":"http://one.example/jwks"}`, "a file": `{"jwks_uri":"file:///etc/passwd"}`,
			"a password": `{"jwks_uri":"https://a:b@one.example/jwks"}`,
		} {
			w.set(issuer, says(doc, ""))
			pass(2 * mostRefresh)
			if st := k.Status()[0]; st.Err == nil || st.Keys != 1 {
				t.Errorf("%s: %+v", name, st)
			}
		}
	})
}
