package revoked

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestCheck(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	cut := Seconds(now)
	var table Table
	for _, e := range []Entry{
		{Key: IDKey("a", "1")},
		{Key: SubjectKey("a", "alice")},
		{Key: SubjectKey("a", "bob"), Before: cut},
		{Key: IssuerKey("b"), Before: cut},
		{Key: IssuerKey("c")},
	} {
		table.Put(e)
	}
	old, fresh := float64(now.Unix()-1), float64(now.Unix())
	for name, c := range map[string]struct {
		token Token
		want  Reason
	}{
		"the token":                           {Token{Issuer: "a", ID: "1"}, ByID},
		"its jti at another issuer":           {Token{Issuer: "b", ID: "1", IssuedAt: fresh, HasIssuedAt: true}, NotRevoked},
		"its jti as sub":                      {Token{Issuer: "a", Subject: "1"}, NotRevoked},
		"another token":                       {Token{Issuer: "a", ID: "2", Subject: "x"}, NotRevoked},
		"issuer and jti cut elsewhere":        {Token{Issuer: "a1", ID: ""}, NotRevoked},
		"a subject":                           {Token{Issuer: "a", ID: "2", Subject: "alice", IssuedAt: fresh, HasIssuedAt: true}, BySubject},
		"a subject's old session":             {Token{Issuer: "a", Subject: "bob", IssuedAt: old, HasIssuedAt: true}, IssuedBefore},
		"a subject's new session":             {Token{Issuer: "a", Subject: "bob", IssuedAt: fresh, HasIssuedAt: true}, NotRevoked},
		"a subject that does not say when":    {Token{Issuer: "a", Subject: "bob"}, IssuedBefore},
		"a subject that says no number":       {Token{Issuer: "a", Subject: "bob", IssuedAt: math.NaN(), HasIssuedAt: true}, IssuedBefore},
		"an issuer's old token":               {Token{Issuer: "b", IssuedAt: old, HasIssuedAt: true}, IssuedBefore},
		"an issuer's new token":               {Token{Issuer: "b", IssuedAt: fresh, HasIssuedAt: true}, NotRevoked},
		"an issuer's token without any claim": {Token{Issuer: "b"}, IssuedBefore},
		"an issuer":                           {Token{Issuer: "c", Subject: "x", IssuedAt: fresh, HasIssuedAt: true}, ByIssuer},
		"nobody":                              {Token{}, NotRevoked},
	} {
		if got := table.Check(c.token); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// TestKeys: no two things have the same key.
func TestKeys(t *testing.T) {
	long := strings.Repeat("x", 300)
	seen := map[Key]string{}
	for name, k := range map[string]Key{
		"a|bc": IDKey("a", "bc"), "ab|c": IDKey("ab", "c"), "sub a|bc": SubjectKey("a", "bc"), "issuer abc": IssuerKey("abc"), "jti of no issuer": IDKey("", "abc"),
		"empty": IssuerKey(""), "long": IDKey(long, "1"), "long+1": IDKey(long, "11"), "separator": IDKey("a\x00b", "c"), "separator 2": IDKey("a", "\x00bc"),
	} {
		if other, there := seen[k]; there || k == (Key{}) {
			t.Errorf("%q has the key of %q", name, other)
		}
		seen[k] = name
	}
}

// TestTableAsMap: whatever is put and deleted, the table says what a map says.
func TestTableAsMap(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var table Table
	want := map[Key]Entry{}
	for step := range 50_000 {
		// Few shards and few beginnings, so that searches lead over each other.
		var k Key
		k[0], k[8], k[15] = byte(rnd.IntN(2)), byte(rnd.IntN(40)), byte(1+rnd.IntN(6))
		if rnd.IntN(2) == 0 {
			e := Entry{Key: k, Until: uint32(step)}
			table.Put(e)
			want[k] = e
		} else {
			_, there := want[k]
			if table.Delete(k) != there {
				t.Fatalf("step %d: deleted, there %v", step, there)
			}
			delete(want, k)
		}
		if got, there := table.Get(k); there != (want[k] != Entry{}) || got != want[k] {
			t.Fatalf("step %d: %v %v, want %v", step, got, there, want[k])
		}
	}
	n := 0
	for e := range table.All() {
		n++
		if want[e.Key] != e {
			t.Errorf("%v, want %v", e, want[e.Key])
		}
	}
	if n != len(want) || table.Len() != n {
		t.Errorf("%d entries, Len %d, want %d", n, table.Len(), len(want))
	}
	for k := range want {
		if _, there := table.Get(k); !there {
			t.Errorf("%v is missing", k)
		}
	}
}

func TestExpire(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	var table Table
	table.Put(Entry{Key: IDKey("a", "never")})
	table.Put(Entry{Key: IDKey("a", "within the leeway"), Until: Seconds(now.Add(-grace))})
	table.Put(Entry{Key: IDKey("a", "over"), Until: Seconds(now.Add(-grace - time.Second))})
	if n := table.Expire(now); n != 1 || table.Len() != 2 {
		t.Errorf("%d expired, %d left", n, table.Len())
	}
	if r := table.Check(Token{Issuer: "a", ID: "within the leeway"}); r != ByID {
		t.Errorf("a token that verifiers may still take: %q", r)
	}
}

func TestWiden(t *testing.T) {
	for _, c := range []struct{ a, b, want Entry }{
		{Entry{Before: 5, Until: 9}, Entry{Before: 7, Until: 8}, Entry{Before: 7, Until: 9}},
		{Entry{Before: 5, Until: 9}, Entry{}, Entry{}},
		{Entry{}, Entry{Before: 7, Until: 8}, Entry{}},
	} {
		if got := c.a.Widen(c.b); got != c.want {
			t.Errorf("%v and %v: %v", c.a, c.b, got)
		}
	}
}

func TestSeconds(t *testing.T) {
	if Seconds(time.Time{}) != 0 || Seconds(time.Unix(-5, 0)) != 1 || Seconds(time.Unix(1<<40, 0)) != math.MaxUint32 || !Time(0).IsZero() {
		t.Error("a time that does not fit became another")
	}
	if now := time.Unix(1_800_000_000, 0); !Time(Seconds(now)).Equal(now) {
		t.Error("a time does not come back")
	}
}

// million are keys that cost nothing to make.
func million(table *Table) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 1_000_000 {
		var k Key
		binary.LittleEndian.PutUint64(k[:], rnd.Uint64())
		binary.LittleEndian.PutUint64(k[8:], rnd.Uint64())
		table.Put(Entry{Key: k, Until: 1})
	}
}

// TestMillionEntries: a million revocations take at most 64 MiB.
func TestMillionEntries(t *testing.T) {
	var table Table
	million(&table)
	bytes := 0
	for i := range table.shards {
		bytes += cap(table.shards[i].slots) * 24
	}
	if n := table.Len(); n != 1_000_000 || bytes > 64<<20 {
		t.Errorf("%d entries take %d bytes", n, bytes)
	}
	t.Logf("%d bytes", bytes)
}

// BenchmarkTable asks about tokens that are not revoked, which takes longest: three
// keys.
func BenchmarkTable(b *testing.B) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	table := new(Table)
	million(table)
	runtime.GC()
	runtime.ReadMemStats(&after)
	tokens := make([]Token, 1024)
	for i := range tokens {
		tokens[i] = Token{Issuer: "https://issuer.example/realms/shop", Subject: fmt.Sprintf("user-%032d", i), ID: fmt.Sprintf("%036d", i), IssuedAt: 1, HasIssuedAt: true}
	}
	for i := 0; b.Loop(); i++ {
		if table.Check(tokens[i%len(tokens)]) != NotRevoked {
			b.Fatal("revoked")
		}
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB")
}
