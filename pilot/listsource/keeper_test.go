package listsource

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/writ-mesh/writ/pilot/fetch"
	"github.com/writ-mesh/writ/pilot/model"
)

// fake is a source that a test changes.
type fake struct {
	mu     sync.Mutex
	answer fetch.Answer
	err    error
	asked  int
	tag    string
}

func (f *fake) get(_ context.Context, _ *model.AccessSource, tag string) (fetch.Answer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	f.tag = tag
	return f.answer, f.err
}

// says is what the source gives from now on.
func (f *fake) says(a fetch.Answer, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer, f.err = a, err
}

// since gives how often it was asked since the last time, and with which tag last.
func (f *fake) since() (asked int, tag string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	asked, f.asked = f.asked, 0
	return asked, f.tag
}

// pass lets the time of a bubble pass.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // of a synctest bubble
}

func partners(url string, maxAge time.Duration) *model.AccessList {
	return &model.AccessList{
		Meta: model.Meta{Ref: model.Ref{Kind: "AccessList", Namespace: "default", Name: "partners"}}, Form: model.AccessAddresses,
		From: &model.AccessSource{URL: url, Refresh: time.Minute, Timeout: time.Second, MaxAge: maxAge},
	}
}

func keeper(state string, f *fake) *Keeper {
	k := New(Options{State: state, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry()})
	k.get = f.get
	return k
}

// running runs k in the bubble of a test.
func running(t *testing.T, k *Keeper) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- k.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	synctest.Wait()
}

func (k *Keeper) entries(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	got, ok := k.Fetched()["default/partners"]
	if ok != (want != nil) || !slices.Equal(got.Entries, want) {
		t.Errorf("in force is %q (%v), want %q", got.Entries, ok, want)
	}
}

func TestLastGoodStays(t *testing.T) {
	state := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := &fake{err: errors.New("away")}
		k := keeper(state, f)
		k.Set([]*model.AccessList{partners("http://a.example/", 0)})
		running(t, k)
		k.entries(t)
		if p := k.Problems(); len(p) != 1 || !p[0].Fetched.IsZero() {
			t.Errorf("problems: %+v", p)
		}
		f.says(fetch.Answer{Body: []byte("# partners\r\n10.0.0.1\r\n\r\n10.0.0.1\n 10.1.0.0/16 \n"), Tag: "t1"}, nil)
		pass(2 * time.Second) // of the bubble: the first retry is after a second
		k.entries(t, "10.0.0.1", "10.1.0.0/16")
		if p := k.Problems(); len(p) != 0 {
			t.Errorf("problems: %+v", p)
		}
		for _, bad := range [][]byte{[]byte("10.0.0.1\nsecret of a server\n"), []byte(""), []byte(" \n\n"), make([]byte, maxBody+1), nil} {
			var err error
			if bad == nil {
				err = errors.New("away")
			}
			f.says(fetch.Answer{Body: bad}, err)
			pass(2 * time.Minute)
			k.entries(t, "10.0.0.1", "10.1.0.0/16")
			p := k.Problems()
			if len(p) != 1 || p[0].Entries != 2 || p[0].Fetched.IsZero() {
				t.Errorf("problems: %+v", p)
			}
			if len(p) == 1 && strings.Contains(p[0].Err.Error(), "secret") {
				t.Error("the body is told")
			}
		}
		if _, tag := f.since(); tag != "t1" {
			t.Errorf("asked with the tag %q", tag)
		}
		f.says(fetch.Answer{Unchanged: true}, nil)
		pass(2 * time.Minute)
		k.entries(t, "10.0.0.1", "10.1.0.0/16")
		f.says(fetch.Answer{Body: []byte("# nobody\n")}, nil)
		pass(2 * time.Minute)
		synctest.Wait()
		if got, ok := k.Fetched()["default/partners"]; !ok || len(got.Entries) != 0 {
			t.Errorf("in force is %+v, %v", got, ok)
		}
		f.says(fetch.Answer{Body: []byte("10.9.9.9\n")}, nil)
		pass(2 * time.Minute)
		k.entries(t, "10.9.9.9")
	})
	synctest.Test(t, func(t *testing.T) { // after a restart
		f := &fake{err: errors.New("away")}
		k := keeper(state, f)
		k.Set([]*model.AccessList{partners("http://a.example/", 0)})
		k.entries(t, "10.9.9.9")
		running(t, k)
		k.entries(t, "10.9.9.9")
		k.Set(nil)
		k.entries(t)
		f.since()
		pass(time.Hour)
		if asked, _ := f.since(); asked != 0 {
			t.Error("what nobody asks for is looked at")
		}
		k.Set([]*model.AccessList{partners("http://a.example/", 0)})
		k.entries(t)
	})
}

func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{answer: fetch.Answer{Body: []byte("10.0.0.1\n")}}
		k := keeper("", f)
		running(t, k)
		k.Set([]*model.AccessList{partners("http://a.example/", 0)})
		synctest.Wait()
		pass(10*time.Minute + time.Second)
		synctest.Wait()
		if asked, _ := f.since(); asked != 11 {
			t.Errorf("asked %d times in ten minutes, want 11", asked)
		}
		f.says(fetch.Answer{}, errors.New("away"))
		pass(2 * time.Minute)
		synctest.Wait()
		if asked, _ := f.since(); asked != 6 { // a second, two, four and so on after the first failure
			t.Errorf("asked %d times in two minutes without an answer", asked)
		}
		f.says(fetch.Answer{Body: []byte("10.0.0.2\n")}, nil)
		k.Set([]*model.AccessList{partners("http://b.example/", 0)}) // another place is looked at at once
		k.entries(t, "10.0.0.2")
		list := partners("http://b.example/", 0)
		list.Form = model.AccessRegex
		f.says(fetch.Answer{Body: []byte("a(\n")}, nil)
		k.Set([]*model.AccessList{list})
		k.entries(t, "10.0.0.2") // which is an expression as well
	})
}

func TestMaxAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{answer: fetch.Answer{Body: []byte("10.0.0.1\n")}}
		k := keeper("", f)
		running(t, k)
		k.Set([]*model.AccessList{partners("http://a.example/", 5*time.Minute)})
		k.entries(t, "10.0.0.1")
		<-k.Changed()
		f.says(fetch.Answer{}, errors.New("away"))
		pass(4 * time.Minute)
		k.entries(t, "10.0.0.1")
		for len(k.Changed()) > 0 {
			<-k.Changed()
		}
		pass(2 * time.Minute)
		synctest.Wait()
		if got := k.Fetched()["default/partners"]; !got.Expired || got.Entries != nil {
			t.Errorf("in force is %+v", got)
		}
		if len(k.Changed()) == 0 {
			t.Error("nobody is told")
		}
		f.says(fetch.Answer{Body: []byte("10.0.0.1\n")}, nil)
		pass(2 * time.Minute)
		synctest.Wait()
		if got := k.Fetched()["default/partners"]; got.Expired || len(got.Entries) != 1 {
			t.Errorf("in force is %+v", got)
		}
	})
}

// FuzzParse: what is taken is entries, and each of them a line.
func FuzzParse(f *testing.F) {
	for _, seed := range []string{"", "10.0.0.1", "# a\n\xef\xbb\xbf10.0.0.1\r\n::1/64", "a\x00b", "\xff", "(", "10.0.0.0/33"} {
		f.Add(uint8(0), []byte(seed))
		f.Add(uint8(2), []byte(seed))
		f.Add(uint8(3), []byte(seed))
	}
	f.Fuzz(func(t *testing.T, form uint8, body []byte) {
		entries, err := parse(model.AccessForm(form%4), body)
		if err != nil {
			return
		}
		if entries == nil || !fits(model.AccessForm(form%4), entries) {
			t.Errorf("%q is taken as %q", body, entries)
		}
	})
}

// TestOneNamespaceDelaysNoOther: whatever the lists of a namespace name, and however many
// they are, those of others are looked at.
func TestOneNamespaceDelaysNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{answer: fetch.Answer{Body: []byte("10.0.0.1\n")}}
		k := keeper("", f)
		asked := map[string]bool{}
		k.get = func(ctx context.Context, src *model.AccessSource, tag string) (fetch.Answer, error) {
			if !strings.HasPrefix(src.URL, "http://slow") {
				return f.get(ctx, src, tag)
			}
			f.mu.Lock()
			asked[src.URL] = true
			f.mu.Unlock()
			<-ctx.Done()
			return fetch.Answer{}, ctx.Err()
		}
		var lists []*model.AccessList
		for i := range maxURLs + 3 {
			l := partners(fmt.Sprintf("http://slow%d.example/", i), 0)
			l.Namespace, l.Name = "evil", fmt.Sprintf("l%03d", i)
			lists = append(lists, l)
		}
		k.Set(lists)
		running(t, k)
		k.Set(append(lists, partners("http://a.example/", 0)))
		k.entries(t, "10.0.0.1")
		p := k.Problems()
		if len(p) != 3 || p[0].List != lists[maxURLs] || !errors.Is(p[0].Err, errTooMany) {
			t.Errorf("problems: %+v", p)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(asked) != maxFetches {
			t.Errorf("%d slow ones at once, want %d", len(asked), maxFetches)
		}
	})
}
