package acme

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/writ-mesh/writ/ca/ledger"
)

func TestNames(t *testing.T) {
	allowed, err := parsePatterns([]string{"www.example.org", ".apps.example.org", ".corp"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		"www.example.org": true, "a.www.example.org": false, "example.org": false, "wwwexample.org": false,
		"a.apps.example.org": true, "a.b.apps.example.org": true, "apps.example.org": false, "xapps.example.org": false,
		"*.apps.example.org": true, "*.a.apps.example.org": true, "*.example.org": false, "*.www.example.org": false, "*": false, "*.": false,
		"*.*.apps.example.org": false, "a.*.apps.example.org": false, "*a.apps.example.org": false,
		"x.corp": true, "corp": false, "*.corp": true,
		"A.apps.example.org": false, "a.apps.example.org.": false, "-a.apps.example.org": false, "a_b.apps.example.org": false,
		"a b.apps.example.org": false, "a\x00.apps.example.org": false, "": false, ".": false, ".apps.example.org": false, "..apps.example.org": false,
		strings.Repeat("a", 64) + ".apps.example.org": false, strings.Repeat("a", 63) + ".apps.example.org": true,
		strings.Repeat("a.", 130) + "apps.example.org": false, "10.0.0.1": false, "spiffe://td/ns/a/sa/b": false,
	} {
		if got := allowed.allow(name); got != want {
			t.Errorf("%q: %t, want %t", name, got, want)
		}
	}
	for _, bad := range []string{"", ".", "*.example.org", "Example.org", "example.org.", "10.0.0.1", "a..b", "a/b"} {
		if p, err := parsePatterns([]string{bad}); err == nil {
			t.Errorf("%q is the pattern %q", bad, p)
		}
	}
}

func FuzzNames(f *testing.F) {
	for _, s := range []string{"a.example.org", "*.example.org", "a.example.org.", "xn--a.example.org", "*.*.example.org"} {
		f.Add(s)
	}
	allowed, err := parsePatterns([]string{".example.org"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if !allowed.allow(name) {
			return
		}
		if !strings.HasSuffix(name, ".example.org") || strings.ContainsAny(name, "/: \x00") || strings.LastIndex(name, "*") > 0 || name != strings.ToLower(name) {
			t.Errorf("%q is allowed", name)
		}
	})
}

func TestAddresses(t *testing.T) {
	none, err := parseNetworks(nil)
	if err != nil {
		t.Fatal(err)
	}
	some, err := parseNetworks([]string{"10.1.0.0/16", "fd00::/8", "0.0.0.0/0", "::/0"})
	if err != nil {
		t.Fatal(err)
	}
	loopback, err := parseNetworks([]string{"127.0.0.0/8", "169.254.169.0/24"})
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string][3]bool{ // by default, with private networks, with those of this machine
		"8.8.8.8": {true, true, true}, "2606:4700::1111": {true, true, true},
		"10.1.2.3": {false, true, false}, "192.168.1.1": {false, true, false}, "fd12::1": {false, true, false}, "100.64.0.1": {false, true, false},
		"127.0.0.1": {false, false, true}, "127.1.2.3": {false, false, true}, "::1": {}, "0.0.0.0": {}, "::": {},
		"169.254.169.254": {false, false, true}, "169.254.1.1": {}, "fe80::1": {}, "224.0.0.1": {}, "255.255.255.255": {}, "ff02::1": {},
		"::ffff:127.0.0.1": {false, false, true}, "::ffff:10.1.2.3": {false, true, false}, "64:ff9b::7f00:1": {false, true, false},
		"2002:7f00:1::": {false, true, false}, "2001:0:7f00:1::": {false, true, false}, "240.0.0.1": {false, true, false},
		"198.18.0.1": {false, true, false}, "192.0.2.1": {false, true, false}, "fec0::1": {},
	} {
		a := netip.MustParseAddr(text)
		if got := [3]bool{none.permits(a), some.permits(a), loopback.permits(a)}; got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
	if none.permits(netip.MustParseAddr("fe80::1%eth0")) || none.permits(netip.Addr{}) {
		t.Error("an address with a zone, or none")
	}
	for _, bad := range []string{"10.0.0.1/8", "10.0.0.0", "x", "::ffff:10.0.0.0/104"} {
		if _, err := parseNetworks([]string{bad}); err == nil {
			t.Errorf("%q is a network", bad)
		}
	}
}

func FuzzAddresses(f *testing.F) {
	f.Add([]byte{127, 0, 0, 1})
	f.Add([]byte{0xfe, 0x80, 15: 1})
	none, err := parseNetworks(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, ok := netip.AddrFromSlice(raw)
		if !ok || !none.permits(a) {
			return
		}
		if u := a.Unmap(); u.IsPrivate() || u.IsLoopback() || u.IsLinkLocalUnicast() || u.IsMulticast() || u.IsUnspecified() || u.IsInterfaceLocalMulticast() {
			t.Errorf("%s is permitted", a)
		}
	})
}

// A nonce is good once, for a while, and at each authority with the key.
func TestNonces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key := make([]byte, 32)
		a, b := newNonces(key, time.Now), newNonces(key, time.Now)
		n := a.make()
		if _, err := b.use(n); err != nil {
			t.Error(err)
		}
		if _, err := b.use(n); err == nil {
			t.Error("used twice")
		}
		if id, err := a.use(n); err != nil || id == "" {
			t.Errorf("at the other: %v", err) // there the document in the ledger forbids it
		}
		stranger := newNonces([]byte("another"), time.Now)
		for _, bad := range []string{"", "x", n[:len(n)-2], n + "AA", stranger.make(), strings.Repeat("A", len(n)), n + "\n"} {
			if _, err := b.use(bad); err == nil {
				t.Errorf("%q is good", bad)
			}
		}
		old, used := a.make(), a.make()
		time.Sleep(nonceLife / 2) // fake time
		if _, err := a.use(used); err != nil {
			t.Error(err)
		}
		for range 4 { // until what is remembered has changed places, and longer
			time.Sleep(nonceLife / 4) // fake time
			if _, err := a.use(used); err == nil {
				t.Error("used twice, later")
			}
			_, _ = a.use(a.make())
		}
		if _, err := a.use(old); err == nil {
			t.Error("too old")
		}
		if ahead := newNonces(key, func() time.Time { return time.Now().Add(2 * nonceSkew) }); true {
			if _, err := a.use(ahead.make()); err == nil {
				t.Error("of the future")
			}
		}
	})
}

// The index counts what there is of each account and knows what can go.
func TestIndex(t *testing.T) {
	now := time.Now()
	x := newIndex()
	put := func(key string, version uint64, value string) ledger.Document {
		return ledger.Document{Key: key, Version: version, Value: []byte(value)}
	}
	stamp := func(d time.Duration) string { return now.Add(d).UTC().Format(time.RFC3339) }
	err := x.take(ledger.Update{Put: []ledger.Document{
		put(nonceKey, 1, "secret"),
		put(noncePrefix+"old", 2, stamp(-time.Hour)),
		put(noncePrefix+"new", 3, stamp(0)),
		put(accountPrefix+"busy", 4, `{"status":"valid","external":"web","created":"`+stamp(-30*24*time.Hour)+`"}`),
		put(accountPrefix+"idle", 5, `{"status":"valid","created":"`+stamp(-30*24*time.Hour)+`"}`),
		put(accountPrefix+"fresh", 6, `{"status":"valid","created":"`+stamp(0)+`"}`),
		put(orderPrefix+"1", 7, `{"account":"busy","status":"pending","expires":"`+stamp(time.Hour)+`"}`),
		put(orderPrefix+"2", 8, `{"account":"busy","status":"valid","expires":"`+stamp(-2*time.Hour)+`"}`),
		put(certificatePrefix+"0a", 9, `{"account":"busy","not_after":"`+stamp(time.Hour)+`"}`),
	}}, true)
	if err != nil {
		t.Fatal(err)
	}
	own, total := x.of("busy")
	if want := (count{accounts: 1, orders: 2, open: 1, certificates: 1}); own != want || total != (count{accounts: 3, orders: 2, open: 1, certificates: 1}) {
		t.Errorf("%+v, %+v", own, total)
	}
	due := x.due(now)
	if len(due) != 3 || due[noncePrefix+"old"] != 2 || due[accountPrefix+"idle"] != 5 || due[orderPrefix+"2"] != 8 {
		t.Errorf("due: %v", due)
	}
	if got := x.orders("busy"); !slices.Equal(got, []string{"1", "2"}) {
		t.Errorf("orders %v", got)
	}
	err = x.take(ledger.Update{
		Put:     []ledger.Document{put(orderPrefix+"1", 10, `{"account":"busy","status":"valid","expires":"`+stamp(time.Hour)+`"}`), put(orderPrefix+"3", 11, "no")},
		Deleted: []string{orderPrefix + "2", certificatePrefix + "0a", "unknown"},
	}, false)
	if err == nil {
		t.Error("a document that cannot be read is taken")
	}
	if own, _ := x.of("busy"); own != (count{accounts: 1, orders: 1}) {
		t.Errorf("%+v", own)
	}
	if own, total := x.accounts("web"); own != 1 || total != 3 {
		t.Errorf("%d accounts of an external one, %d in all", own, total)
	}
	if err := x.take(ledger.Update{}, true); err != nil || len(x.docs)+len(x.counts)+len(x.externals) > 0 || x.total != (count{}) {
		t.Errorf("%+v, %v", x, err)
	}
}
