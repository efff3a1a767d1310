package region

import (
	"errors"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// expressions are of every kind that rules come to.
var expressions = []string{
	"", ".+", ".*", "a", "ab", "a.*", ".*b", "/a/[^/]+", "/a/.*", "/[^/]+/b", ".*/b/.*", "(?i)aB", "(?i)a.*", "(?:a|b)/.*", "a(?:/.*)?", `a\.?`, "[^a]*", "(ab)*",
}

// TestCellsAreExact: every text has the tests of one of the cells, and every cell's
// example has its tests, as package regexp says.
func TestCellsAreExact(t *testing.T) {
	var compiled []*regexp.Regexp
	for _, e := range expressions {
		compiled = append(compiled, regexp.MustCompile("^(?s:"+e+")$"))
	}
	var s Space
	v := s.Text("text")
	for _, e := range expressions {
		v.Match(e, e)
	}
	if err := s.Split(); err != nil {
		t.Fatal(err)
	}
	truth := func(text string) string {
		set := newSet(len(compiled))
		for i, re := range compiled {
			if re.MatchString(text) {
				set.add(i)
			}
		}
		return setKey(set)
	}
	cells := map[string]bool{}
	for _, c := range v.cells {
		if cells[setKey(c.truth)] {
			t.Errorf("two cells have the tests of %q", c.witness)
		}
		cells[setKey(c.truth)] = true
		if truth(c.witness) != setKey(c.truth) {
			t.Errorf("the example %q is not in its cell", c.witness)
		}
	}
	var all func(text string, more int)
	all = func(text string, more int) {
		if !cells[truth(text)] {
			t.Fatalf("%q is in no cell", text)
		}
		if at, err := v.Locate(text); err != nil || setKey(v.cells[at.first()].truth) != truth(text) {
			t.Fatalf("%q is found in another cell: %v", text, err)
		}
		if more == 0 {
			return
		}
		for _, c := range "abB/.x" {
			all(text+string(c), more-1)
		}
	}
	all("", 4)
}

func TestAddressCells(t *testing.T) {
	var s Space
	v := s.Address("address")
	blocks := []string{"10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0", "2001:db8::/32", "255.255.255.255/32"}
	var tests []Test
	for _, b := range blocks {
		tests = append(tests, v.Within(b, netip.MustParsePrefix(b)))
	}
	if err := s.Split(); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"0.0.0.0", "9.255.255.255", "10.0.0.0", "10.0.255.255", "10.1.0.0", "10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.255.255", "10.2.0.0", "11.0.0.0", "255.255.255.255", "::", "2001:db8::1", "2001:db9::"} {
		cell, err := v.Locate(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		for i, b := range blocks {
			if want := netip.MustParsePrefix(b).Contains(netip.MustParseAddr(text)); tests[i].Set().And(cell).Empty() == want {
				t.Errorf("%s in %s: %v", text, b, !want)
			}
		}
	}
}

// TestPartition: the regions of two variables are disjoint and have the right outcome.
func TestPartition(t *testing.T) {
	var s Space
	who, path := s.Text("who").MayBeAbsent(), s.Text("path")
	alice, some, admin, folder := who.Match("alice", "alice"), who.Match("anybody", ".+"), path.Match("/admin", "/admin"), path.Match("/a*", "/a.*")
	path.Domain("/.*")
	if err := s.Split(); err != nil {
		t.Fatal(err)
	}
	groups := [][]Term{
		{{{path, admin.Set()}, {who, who.All().Minus(alice.Set())}}},
		{{{path, folder.Set()}, {who, some.Set()}}},
	}
	regions, err := s.Partition(groups, func(g []Group) (string, bool) {
		switch {
		case g[0].State == True || g[1].State == False:
			return "no", true
		case g[0].State == False && g[1].State == True:
			return "yes", true
		}
		return "", false
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range regions {
		var parts []string
		for _, c := range r.Constraints {
			if text := c.Var.Describe(c.Set); text != "" {
				parts = append(parts, c.Var.Name()+" "+text)
			}
		}
		got = append(got, r.Outcome+": "+strings.Join(parts, ", "))
	}
	slices.Sort(got)
	want := []string{"yes: who alice, path /a*", "yes: who anybody, but not alice, path /a*, but not /admin"}
	if yes := slices.DeleteFunc(got, func(text string) bool { return strings.HasPrefix(text, "no") }); !slices.Equal(yes, want) {
		t.Errorf("got  %q\nwant %q", yes, want)
	}
}

func TestTooLarge(t *testing.T) {
	var s Space
	v := s.Text("text").MayBeList()
	for _, c := range "abcdefghijklmnop" {
		v.Match(string(c), string(c))
	}
	if err := s.Split(); !errors.Is(err, errTooLarge) {
		t.Errorf("65536 lists: %v", err)
	}
	for _, e := range []string{"^a", `a\b`, "(", "a$"} {
		if Check(e) == nil {
			t.Errorf("%q is looked into", e)
		}
	}
}
