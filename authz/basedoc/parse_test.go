package basedoc

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/util"
)

// texts are JSON, and what looks like it.
func texts() []string {
	list := []string{
		`{}`, `[]`, `null`, `true`, `false`, `0`, `-0`, `1.50`, `12345678901234567890123`, `1e3`, `1E-7`, `-1.5e+10`, `""`, `"a"`,
		` {"a" : [1, 2 ,{"b":null}], "":"" } ` + "\n\t\r",
		`{"roles":{"r1":{"GET":true}},"users":{"u1":["r1","r2"]}}`,
		`"\u00e9\n\"\\\/\b\f\r\t"`, `"\ud83d\ude00"`, `"\ud800"`, `"\ud800\u0041"`, `"\udc00x"`, `"é😀"`, "\"\xff\"", "\"a\xc3\"", `{"\u0061":1}`,
		`{"a":1,"a":2}`, `{"a":1,"\u0061":2}`, `{"a":1,"a":2`, `[{"x":{"a":1,"b":2,"a":3}}]`,
		`1e999999999`, `1e-999999999`, `1e99999999999999999999`,
		"", " ", `{`, `[`, `[1,]`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{,}`, `[,]`, `01`, `+1`, `.5`, `1.`, `1e`, `-`, `--1`, `tru`, `nul`, `truex`, `"`, `"\`, `"\x"`, `"\u12"`,
		"\"a\nb\"", "\"\x00\"", `{} {}`, `{}x`, "[1\x00]", "\x00", `[1 2]`, `{"a" 1}`, `{1:2}`, `]`, `}`, `[}`, `{]`, `'a'`, `a: 1`, "\xef\xbb\xbf{}",
		strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000), strings.Repeat("[", 10_001) + strings.Repeat("]", 10_001),
	}
	// Around the sizes at which the form changes.
	for _, n := range []int{15, 16, 17, 18, 62, 63, 64, 65, 120, 127, 128, 130, 254, 255, 256, 300, 1000} {
		var numbers, names, short []string
		for i := range n {
			numbers = append(numbers, fmt.Sprint(i%10))
			names = append(names, fmt.Sprintf(`"name %d": [%d, {"x": "%d"}]`, i, i, i))
			short = append(short, fmt.Sprintf(`"%d":1`, i))
		}
		list = append(list, `"`+strings.Repeat("x", n)+`"`, `[`+strings.Repeat("9", n)+`]`, `[`+strings.Join(numbers, ",")+`]`,
			`{`+strings.Join(names, ",")+`}`, `[{`+strings.Join(short, ",")+`}]`,
			`[`+strings.Repeat("[", min(n, 300))+strings.Repeat("]", min(n, 300))+`]`,
			`{`+strings.Join(append(names, `"name 3": 0`), ",")+`}`)
	}
	return list
}

// asOPA is what OPA's own store would hold.
func asOPA(text []byte) (ast.Value, error) {
	var x any
	if err := util.UnmarshalJSON(text, &x); err != nil {
		return nil, err
	}
	return ast.InterfaceToValue(x)
}

// checkParsed compares a text with OPA's reading of it, as a whole and part by part.
func checkParsed(t *testing.T, text []byte) {
	t.Helper()
	want, wantErr := asOPA(text)
	d, err := parseJSON(text)
	if errors.Is(err, errTwice) {
		d, err = parseOr(text, util.UnmarshalJSON)
	}
	switch {
	case (err == nil) != (wantErr == nil):
		t.Fatalf("%.200q: %v, want %v", text, err, wantErr)
	case err != nil:
		return
	}
	v := value{doc: d}
	if got := v.ast(); !same(got, want) {
		t.Fatalf("%.200q: got %.200v, want %.200v", text, got, want)
	}
	checkParts(t, v, want)
}

// same is stricter than Rego, for which 1 and 1.0 are equal.
func same(a, b ast.Value) bool {
	return a.Compare(b) == 0 && a.Hash() == b.Hash() && a.String() == b.String()
}

// checkParts looks up each member of a container.
func checkParts(t *testing.T, v value, want ast.Value) {
	t.Helper()
	look := func(name string, want ast.Value) {
		c := v.child(name)
		if c.isNothing() {
			t.Fatalf("%q is not found", name)
		}
		if got := c.ast(); !same(got, want) {
			t.Fatalf("%q: got %.200v, want %.200v", name, got, want)
		}
		checkParts(t, c, want)
	}
	switch want := want.(type) {
	case ast.Object:
		want.Foreach(func(k, x *ast.Term) { look(string(k.Value.(ast.String)), x.Value) })
		if want.Get(ast.StringTerm("not there")) == nil && !v.child("not there").isNothing() {
			t.Fatal("what is not there is found")
		}
	case *ast.Array:
		for i := range min(want.Len(), 300) {
			look(fmt.Sprint(i), want.Elem(i).Value)
		}
		for _, name := range []string{fmt.Sprint(want.Len()), "-1", "x", "", "-"} {
			if !v.child(name).isNothing() {
				t.Fatalf("%q is found in an array of %d", name, want.Len())
			}
		}
	default:
		if !v.child("0").isNothing() {
			t.Fatal("a member of what has none")
		}
	}
}

func TestParse(t *testing.T) {
	for _, text := range texts() {
		if len(text) > 3000 && strings.HasPrefix(text, "[[") {
			text := []byte(text) // comparing each level with each is too much
			_, wantErr := asOPA(text)
			if _, err := parseJSON(text); (err == nil) != (wantErr == nil) {
				t.Errorf("%d deep: %v, want %v", len(text)/2, err, wantErr)
			}
			continue
		}
		checkParsed(t, []byte(text))
	}
}

// What ours does not read, OPA's own decoder does: the last of two members with a name
// counts, and a bundle's file may be YAML.
func TestParseOdd(t *testing.T) {
	for text, want := range map[string]string{
		`{"a":1,"a":2}`:     `{"a": 2}`,
		"a:\n- 1\n- b: x":   `{"a": [1, {"b": "x"}]}`,
		"\xef\xbb\xbf[1.0]": `[1.0]`,
	} {
		d, err := parse([]byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := d.value(0).String(); got != want {
			t.Errorf("%q: got %s, want %s", text, got, want)
		}
	}
	if _, err := parse([]byte(`{"a":1e999999999}`)); err == nil {
		t.Error("a number that OPA refuses is taken")
	}
	if _, err := parse([]byte(`{"a": [1, 2}`)); err == nil || !strings.Contains(err.Error(), "line 1") && !strings.Contains(err.Error(), "yaml") {
		t.Errorf("an error that says nothing: %v", err)
	}
}

// The bytes and the index are about as large as the text.
func TestSize(t *testing.T) {
	text := document1(5_000)
	d, err := parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if bytes, index := len(d.b), 4*len(d.tables); bytes > len(text) || index > len(text)/3 {
		t.Errorf("%d bytes and %d of index for %d of text", bytes, index, len(text))
	}
	if waste := cap(d.b) - len(d.b); waste > len(d.b)/4 {
		t.Errorf("%d bytes are not used", waste)
	}
}

// What a text makes is bounded by itself: containers that have nothing but one another
// take six times their text, and positions have 32 bits.
func TestDocumentIsBounded(t *testing.T) {
	text := []byte(strings.Repeat("[", 5000) + `"` + strings.Repeat("x", 300) + `"` + strings.Repeat("]", 5000))
	if d, err := parseJSON(text); err != nil || len(d.b) < 6*len(text) {
		t.Fatalf("%v", err)
	}
	for name, text := range map[string][]byte{"containers": text, "text": []byte(`["` + strings.Repeat("\xff", 3000) + `"]`)} {
		p := &parser{text: text, most: 3 * len(text) / 2, d: &document{}}
		if err := p.run(); err == nil || !strings.Contains(err.Error(), "takes more than") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range texts() {
		if len(text) < 3000 {
			f.Add([]byte(text))
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if strings.Count(string(text), "[")+strings.Count(string(text), "{") > 200 {
			return // comparing each level with each takes too long
		}
		checkParsed(t, text)
	})
}
