package svid_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/writ-mesh/writ/internal/pkitest"
	"github.com/writ-mesh/writ/nodeagent/svid"
)

var reviews = spiffeid.RequireFromString("spiffe://cluster.local/ns/default/sa/reviews")

// fakeCA signs with a root of its own.
type fakeCA struct {
	mu     sync.Mutex
	life   time.Duration
	away   error
	change func(*x509.Certificate) // what a wrong authority does to a certificate
	root   *pkitest.Root
	asked  []time.Time
	keys   []any
}

func newFakeCA(t *testing.T, life time.Duration) *fakeCA {
	t.Helper()
	return &fakeCA{life: life, root: pkitest.NewRoot(t, "cluster.local")}
}

func (f *fakeCA) Issue(_ context.Context, id spiffeid.ID, csr []byte) (svid.Issued, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, time.Now())
	if f.away != nil {
		return svid.Issued{}, f.away
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return svid.Issued{}, err
	}
	if len(req.URIs) != 1 || req.URIs[0].String() != id.String() {
		return svid.Issued{}, fmt.Errorf("request is for %v", req.URIs)
	}
	leaf := pkitest.Leaf(id.String(), f.life)
	if f.change != nil {
		f.change(leaf)
	}
	public := req.PublicKey
	if leaf.PublicKey != nil {
		public = leaf.PublicKey
	}
	der, err := f.root.Sign(leaf, public)
	f.keys = append(f.keys, req.PublicKey)
	return svid.Issued{Chain: [][]byte{der}, Roots: [][]byte{f.root.Cert.Raw}}, err
}

func (f *fakeCA) set(away error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.away = away
}

func (f *fakeCA) setChange(change func(*x509.Certificate)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.change = change
}

func (f *fakeCA) times() []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]time.Time(nil), f.asked...)
}

type counts struct{ issued, failed atomic.Int64 }

func (c *counts) SVIDIssued() { c.issued.Add(1) }
func (c *counts) SVIDFailed() { c.failed.Add(1) }

func newStore(ca svid.Issuer, c *counts) *svid.Store {
	return svid.NewStore(svid.Config{Issuer: ca, Observer: c, Log: slog.New(slog.DiscardHandler)})
}

// next waits for the next certificate.
func next(t *testing.T, sub *svid.Subscription, old *svid.SVID) *svid.SVID {
	t.Helper()
	for {
		v, changed := sub.Current()
		if v != nil && v != old {
			return v
		}
		select {
		case <-changed:
		case <-time.After(24 * time.Hour):
			t.Fatal("no new certificate within a day")
		}
	}
}

func TestRenewalAtHalfLife(t *testing.T) {
	for _, life := range []time.Duration{10 * time.Second, time.Hour} {
		t.Run(life.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca, c := newFakeCA(t, life), new(counts)
				s := newStore(ca, c)
				defer s.Close()
				synctest.Wait()
				if n := len(ca.times()); n != 0 {
					t.Fatalf("%d certificates before anybody asked", n)
				}
				sub := s.Subscribe("p", reviews)
				defer sub.Close()
				var v *svid.SVID
				seen := map[string]bool{}
				for range 20 {
					v = next(t, sub, v)
					if seen[string(v.KeyPEM())] {
						t.Fatal("a key was used twice")
					}
					seen[string(v.KeyPEM())] = true
				}
				synctest.Wait() // a certificate is counted after it is given out
				times := ca.times()
				for i := 1; i < len(times); i++ {
					// Certificates count whole seconds.
					if gap := times[i].Sub(times[i-1]); gap < life*4/10-time.Second || gap > life*6/10+time.Second {
						t.Errorf("renewal %d after %s of %s", i, gap, life)
					}
				}
				if c.issued.Load() != 20 || c.failed.Load() != 0 {
					t.Errorf("counted %d issued, %d failed", c.issued.Load(), c.failed.Load())
				}
			})
		})
	}
}

func TestAuthorityAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, c := newFakeCA(t, 10*time.Second), new(counts)
		s := newStore(ca, c)
		defer s.Close()
		sub := s.Subscribe("p", reviews)
		defer sub.Close()
		first := next(t, sub, nil)
		ca.set(errors.New("away"))
		<-time.After(8 * time.Second) // fake time
		if v, _ := sub.Current(); v != first {
			t.Fatal("the unexpired certificate is not served while the authority is away")
		}
		<-time.After(4 * time.Second) // fake time
		if v, _ := sub.Current(); v != nil {
			t.Fatal("an expired certificate is served")
		}
		<-time.After(time.Minute) // fake time
		// At most one try each 50 ms at first and each 0.5 s later.
		if n := len(ca.times()); n < 40 || n > 200 {
			t.Fatalf("%d tries in about 66 s", n)
		}
		ca.set(nil)
		back := time.Now()
		s.Wake()
		next(t, sub, first)
		if took := time.Since(back); took > 100*time.Millisecond {
			t.Fatalf("a certificate came %s after the authority was back", took)
		}
	})
}

// TestClockJumps: after one forward the certificate has expired, after one back it is not
// valid yet; both are seen within seconds, though no timer has moved. The clock jumps
// while the certificate's renewal is waited for, or just as it comes.
func TestClockJumps(t *testing.T) {
	for name, jump := range map[string]time.Duration{"forward": 24 * time.Hour, "back": -30 * time.Minute} {
		for when, atOnce := range map[string]bool{"later": false, "at once": true} {
			t.Run(name+" "+when, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					ca := newFakeCA(t, time.Hour)
					var by atomic.Int64
					now := func() time.Time { return time.Now().Add(time.Duration(by.Load())) }
					jumps := func() {
						ca.setChange(func(c *x509.Certificate) { // its clock jumps too
							c.NotBefore, c.NotAfter = now().Add(-time.Second), now().Add(time.Hour)
						})
						by.Store(int64(jump))
					}
					var once sync.Once
					moved := func() {
						if atOnce {
							once.Do(jumps)
						}
					}
					s := svid.NewStore(svid.Config{Issuer: ca, Observer: new(counts), Log: slog.New(slog.DiscardHandler), Now: now, Moved: moved})
					defer s.Close()
					sub := s.Subscribe("p", reviews)
					defer sub.Close()
					next(t, sub, nil)
					synctest.Wait()
					if !atOnce {
						jumps()
					}
					<-time.After(10 * time.Second) // fake time
					v, _ := sub.Current()
					if v == nil || v.NotAfter().Sub(now()) > time.Hour {
						t.Errorf("ten seconds later there is still the certificate of before: %+v", s.Status())
					}
					<-time.After(time.Minute) // fake time
					if n := len(ca.times()); n != 2 {
						t.Errorf("asked %d times", n)
					}
				})
			})
		}
	}
}

func TestUnusedIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, c := newFakeCA(t, 10*time.Second), new(counts)
		s := newStore(ca, c)
		defer s.Close()
		sub := s.Subscribe("p", reviews)
		first := next(t, sub, nil)
		sub.Close()
		sub.Close()
		again := s.Subscribe("p", reviews)
		if v, _ := again.Current(); v != first {
			t.Fatal("a proxy that comes back soon does not get the same certificate")
		}
		again.Close()
		<-time.After(time.Minute) // fake time
		if st := s.Status(); len(st) != 0 {
			t.Fatalf("still held: %+v", st)
		}
		if n := len(ca.times()); n != 1 {
			t.Fatalf("%d certificates for nobody", n-1)
		}
	})
}

func TestAnswersThatAreRefused(t *testing.T) {
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*x509.Certificate){
		"other identity": func(c *x509.Certificate) {
			c.URIs[0] = &url.URL{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/default/sa/admin"}
		},
		"foreign domain": func(c *x509.Certificate) {
			c.URIs[0] = &url.URL{Scheme: "spiffe", Host: "example.org", Path: "/ns/default/sa/reviews"}
		},
		"expired":      func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) },
		"other key":    func(c *x509.Certificate) { c.PublicKey = &other.PublicKey },
		"an authority": func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca, c := newFakeCA(t, time.Hour), new(counts)
				ca.change = change
				s := newStore(ca, c)
				defer s.Close()
				sub := s.Subscribe("p", reviews)
				defer sub.Close()
				<-time.After(10 * time.Second) // fake time
				if v, _ := sub.Current(); v != nil || c.issued.Load() != 0 || c.failed.Load() == 0 {
					t.Fatalf("served %v after %d failures", v, c.failed.Load())
				}
			})
		})
	}
}

func TestSVIDDoesNotShowItsKey(t *testing.T) {
	ca, c := newFakeCA(t, time.Hour), new(counts)
	s := newStore(ca, c)
	defer s.Close()
	sub := s.Subscribe("p", reviews)
	defer sub.Close()
	v := next(t, sub, nil)
	block, _ := pem.Decode(v.KeyPEM())
	if block == nil {
		t.Fatal("no key")
	}
	var out strings.Builder
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", slog.Any("svid", v))
	fmt.Fprint(&out, v)
	if s := out.String(); strings.Contains(s, "PRIVATE") || !strings.Contains(s, v.Serial()) {
		t.Fatalf("shown: %s", s)
	}
	if st := s.Status(); len(st) != 1 || st[0].SVID != v || st[0].Issued != 1 || st[0].ProxyID != "p" {
		t.Fatalf("status %+v", st)
	}
}

// When another authority signs, a certificate is renewed soon and not at once, also
// if the answer is of the old one again; when nobody trusts its root any more, at
// once; and when its own authority signs, at half of its life as ever.
func TestAnotherAuthoritySigns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := newFakeCA(t, time.Hour)
		s := newStore(ca, new(counts))
		defer s.Close()
		sub := s.Subscribe("p", reviews)
		defer sub.Close()
		v := next(t, sub, nil)
		own := v.Authority()
		if own == "" || own != hex.EncodeToString(ca.root.Cert.SubjectKeyId) {
			t.Fatalf("authority %q", own)
		}
		began := time.Now()
		after := func() time.Duration {
			v = next(t, sub, v)
			took := time.Since(began)
			began = time.Now()
			return took
		}
		for range 5 {
			s.SetAuthorities("other", []string{own, "other"})
			if took := after(); took < time.Second || took > 30*time.Second {
				t.Errorf("renewed after %s", took)
			}
		}
		s.SetAuthorities("other", []string{"other"})
		if took := after(); took > time.Second {
			t.Errorf("without anybody's trust, renewed after %s", took)
		}
		s.SetAuthorities(own, []string{own, "other"})
		if after(); after() < 20*time.Minute {
			t.Error("renewed although its authority signs")
		}
	})
}

// TestHundredIdentitiesRotate: all that came at once are renewed again and again, none
// runs out, and they do not come in a herd.
func TestHundredIdentitiesRotate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const identities, life = 100, time.Minute
		ca, c := newFakeCA(t, life), new(counts)
		s := newStore(ca, c)
		defer s.Close()
		for i := range identities {
			id := spiffeid.RequireFromString(fmt.Sprintf("spiffe://cluster.local/ns/default/sa/w%d", i))
			defer s.Subscribe(id.Path(), id).Close()
		}
		synctest.Wait()
		began := time.Now()
		for time.Since(began) < 10*life {
			<-time.After(time.Second)
			for _, st := range s.Status() {
				if st.SVID == nil || !st.SVID.NotAfter().After(time.Now().Add(life/4)) {
					t.Fatalf("%s after %s: less than a quarter of its life is left", st.ID, time.Since(began))
				}
			}
		}
		perSecond := map[time.Duration]int{}
		for _, at := range ca.times() {
			perSecond[at.Sub(began).Truncate(time.Second)]++
		}
		most := 0
		for after, n := range perSecond {
			if after > 0 { // all asked at once at the start
				most = max(most, n)
			}
		}
		if n := len(ca.times()); n < identities*15 || n > identities*26 || c.failed.Load() != 0 {
			t.Errorf("%d certificates, %d failures", n, c.failed.Load())
		}
		if most > identities/4 {
			t.Errorf("%d renewals in one second", most)
		}
		t.Logf("%d certificates, %d in a second at most", len(ca.times()), most)
	})
}
