package basedoc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	opabundle "github.com/open-policy-agent/opa/v1/bundle"
	"github.com/open-policy-agent/opa/v1/loader"
	"github.com/open-policy-agent/opa/v1/metrics"
	oparego "github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
)

// opaStore is OPA's store in the form that gives values of Rego.
func opaStore() storage.Store {
	return inmem.NewWithOpts(inmem.OptRoundTripOnWrite(false), inmem.OptReturnASTValuesOnRead(true))
}

// sameStores compares everything that two stores have.
func sameStores(t *testing.T, ours, opa storage.Store) {
	t.Helper()
	a, b := readAt(t, ours), readAt(t, opa)
	if !same(a, b) {
		t.Fatalf("ours has\n%v\nOPA's has\n%v", a, b)
	}
}

func readAt(t *testing.T, s storage.Store, path ...string) ast.Value {
	t.Helper()
	x, err := storage.ReadOne(t.Context(), s, path)
	if err != nil {
		t.Fatal(err)
	}
	return x.(ast.Value)
}

// Any order of writes leaves what it leaves in OPA's store, and fails where it fails
// there.
func TestWritesAsOPA(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // a test
	names := []string{"a", "b", "c", "1"}
	values := []any{map[string]any{}, map[string]any{"a": map[string]any{"b": json.Number("1")}, "c": "x"}, "text", nil, true, json.Number("1.0"), []any{"x"}}
	for round := range 200 {
		ours, opa := New(), opaStore()
		for range 20 {
			var path storage.Path
			for range random.IntN(4) {
				path = append(path, names[random.IntN(len(names))])
			}
			op := []storage.PatchOp{storage.AddOp, storage.AddOp, storage.RemoveOp, storage.ReplaceOp}[random.IntN(4)]
			x := values[random.IntN(len(values))]
			if through(t, opa, path) {
				continue // members of arrays are not written
			}
			err, want := storage.WriteOne(t.Context(), ours, op, path, x), storage.WriteOne(t.Context(), opa, op, path, x)
			if (err == nil) != (want == nil) || storage.IsNotFound(err) != storage.IsNotFound(want) {
				t.Fatalf("round %d: %v %v %v: %v, want %v", round, op, path, x, err, want)
			}
			if random.IntN(3) == 0 {
				dir := path[:random.IntN(len(path)+1)]
				makeDir := func(s storage.Store) error {
					return storage.Txn(t.Context(), s, storage.WriteParams, func(txn storage.Transaction) error { return storage.MakeDir(t.Context(), s, txn, dir) })
				}
				if !through(t, opa, append(slices.Clone(dir), "0")) {
					if err, want := makeDir(ours), makeDir(opa); (err == nil) != (want == nil) {
						t.Fatalf("round %d: MakeDir %v: %v, want %v", round, dir, err, want)
					}
				}
			}
			sameStores(t, ours, opa)
			sameNonEmpty(t, ours, opa, path)
		}
	}
}

// through says that a path leads into an array.
func through(t *testing.T, s storage.Store, path storage.Path) bool {
	for i := range path {
		x, err := storage.ReadOne(t.Context(), s, path[:i])
		if _, array := x.(*ast.Array); err == nil && array {
			return true
		}
	}
	return false
}

func sameNonEmpty(t *testing.T, ours, opa storage.Store, path storage.Path) {
	t.Helper()
	ask := func(s storage.Store) (there bool) {
		err := storage.Txn(t.Context(), s, storage.TransactionParams{}, func(txn storage.Transaction) (err error) {
			there, err = storage.NonEmpty(t.Context(), s, txn)(path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return there
	}
	if got, want := ask(ours), ask(opa); got != want {
		t.Fatalf("NonEmpty %v: %v, want %v", path, got, want)
	}
}

// A reader sees one version to its end; a writer sees what it wrote, and nobody else
// does before it commits, or ever if it aborts.
func TestVersions(t *testing.T) {
	ctx, s := t.Context(), New()
	put := func(x any) error { return storage.WriteOne(ctx, s, storage.AddOp, storage.Path{"x"}, x) }
	if err := put("one"); err != nil {
		t.Fatal(err)
	}
	read, _ := s.NewTransaction(ctx)
	frozen, err := s.Frozen(read)
	if err != nil {
		t.Fatal(err)
	}
	write, _ := s.NewTransaction(ctx, storage.WriteParams)
	if err := s.Write(ctx, write, storage.AddOp, storage.Path{"x"}, "two"); err != nil {
		t.Fatal(err)
	}
	for txn, want := range map[storage.Transaction]ast.String{read: "one", write: "two"} {
		if x, err := s.Read(ctx, txn, storage.Path{"x"}); err != nil || x != want {
			t.Errorf("read %v, %v, want %v", x, err, want)
		}
	}
	s.Abort(ctx, write)
	s.Abort(ctx, read)
	if x := readAt(t, s, "x"); x != ast.String("one") {
		t.Errorf("after an aborted write there is %v", x)
	}
	if err := put("three"); err != nil {
		t.Fatal(err)
	}
	if x, y := readAt(t, s, "x"), readAt(t, frozen, "x"); x != ast.String("three") || y != ast.String("one") {
		t.Errorf("there is %v, and frozen %v", x, y)
	}
	for _, txn := range []storage.Transaction{read, write} {
		if _, err := s.Read(ctx, txn, nil); !storage.IsInvalidTransaction(err) {
			t.Errorf("a transaction that is over reads: %v", err)
		}
	}
	other, _ := New().NewTransaction(ctx)
	if err := s.Write(ctx, other, storage.AddOp, storage.Path{"x"}, 1); !storage.IsInvalidTransaction(err) {
		t.Errorf("another store's transaction writes: %v", err)
	}
}

// policy asks for data in the ways in which policies do.
const policy = `package p

lookup := data.users[input.user]
deep := data.users[input.user][1]
missing := data.users.nobody
whole := count(data.users)
keys := [k | some k, _ in data.roles]
walked := sum([x | walk(data.roles, [_, x]); is_number(x)])
sorted := [u | some u; data.users[u][_] == "r7"]
got := object.get(data.users, input.user, [])
nested := [r | some r in data.users[input.user]; data.roles[r].methods[_] == "GET"]
index := data.list[3]
indexes := [i | data.list[i] > 17]
number := data.list[0] + data.exact
all := [data.exact, data.roles, data.users]
mocked := names if { names := object.keys(data.roles) with data.roles.more as 1 }
number_name := data.roles[7]
negative if { not data.users[input.user][100] }
`

func document1(n int) string {
	var b strings.Builder
	b.WriteString(`{"exact": 12345678901234567890.10, "list": [1.0`)
	for i := range n {
		fmt.Fprintf(&b, ", %d", i%20)
	}
	b.WriteString(`], "roles": {"7": "seven"`)
	for i := range n {
		fmt.Fprintf(&b, `, "r%d": {"methods": ["GET", "P\u00d6ST"], "level": %d, "none": null}`, i, i)
	}
	b.WriteString(`}, "users": {"ödön\n": ["r1"]`)
	for i := range n {
		fmt.Fprintf(&b, `, "user-%d": ["r%d", "r%d", "r7"]`, i, i%n, i*7%n)
	}
	return b.String() + "}}"
}

// Policies decide as they do over OPA's store, also at the same time.
func TestEvaluatesAsOPA(t *testing.T) {
	Everywhere() // a query compiles its own modules by the same way
	for _, n := range []int{10, 400} {
		text := []byte(document1(n))
		doc, err := parse(text)
		if err != nil {
			t.Fatal(err)
		}
		ours := New()
		ours.Fill(Data{root: value{doc: doc}})
		want := results(t, inmem.NewFromReaderWithOpts(strings.NewReader(string(text)), inmem.OptReturnASTValuesOnRead(true)))
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				if got := results(t, ours); got != want {
					t.Errorf("%d entries: got\n%.2000s\nwant\n%.2000s", n, got, want)
				}
			})
		}
		wg.Wait()
	}
}

func results(t *testing.T, s storage.Store) string {
	var all []string
	for _, user := range []string{"user-3", "ödön\n", "nobody", ""} {
		rs, err := oparego.New(oparego.Query("data.p"), oparego.Module("p.rego", policy),
			oparego.Store(s), oparego.Input(map[string]any{"user": user})).Eval(context.Background())
		if err != nil {
			t.Error(err)
			return ""
		}
		b, err := json.Marshal(rs)
		if err != nil {
			t.Error(err)
		}
		all = append(all, string(b))
	}
	return strings.Join(all, "\n")
}

// A bundle's files are put together as in OPA's store.
func TestTruncateAsOPA(t *testing.T) {
	files := func(more ...opabundle.Raw) []opabundle.Raw {
		return append([]opabundle.Raw{
			{Path: "/data.json", Value: []byte(`{"a": {"x": 1}, "z": [1]}`)},
			{Path: "/a/data.json", Value: []byte(`{"y": {"deep": true}}`)},
			{Path: "/a/y/data.yaml", Value: []byte("more: 1.50\n")},
			{Path: "/n/data.json", Value: []byte("null")},
			{Path: "/t/u/data.json", Value: []byte(`"text"`)},
			{Path: "/p/p.rego", Value: []byte("package p")},
		}, more...)
	}
	for name, c := range map[string]struct {
		raw   []opabundle.Raw
		roots []string
	}{
		"all":                {files(), []string{""}},
		"parts":              {files(), []string{"a", "t/u", "gone"}},
		"part of a file":     {files(), []string{"a/x"}},
		"a name twice":       {files(opabundle.Raw{Path: "/a/b/data.json", Value: []byte(`{}`)}, opabundle.Raw{Path: "/a/x/data.json", Value: []byte(`{}`)}), []string{""}},
		"text instead":       {files(opabundle.Raw{Path: "/z/data.json", Value: []byte(`{}`)}), []string{""}},
		"no object":          {[]opabundle.Raw{{Path: "/data.json", Value: []byte(`[1]`)}}, []string{""}},
		"broken":             {[]opabundle.Raw{{Path: "/data.json", Value: []byte(`{"a": `)}}, []string{""}},
		"twice, last counts": {[]opabundle.Raw{{Path: "/data.json", Value: []byte(`{"a": 1, "a": 2}`)}}, []string{""}},
	} {
		fill := func(s storage.Store) error {
			return storage.Txn(t.Context(), s, storage.WriteParams, func(txn storage.Transaction) error {
				return s.Truncate(t.Context(), txn, storage.TransactionParams{BasePaths: c.roots}, opabundle.NewIterator(c.raw))
			})
		}
		ours, opa := New(), opaStore()
		if err, want := fill(ours), fill(opa); (err == nil) != (want == nil) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		sameStores(t, ours, opa)
		if a, b := policiesIn(t, ours), policiesIn(t, opa); !slices.Equal(a, b) {
			t.Errorf("%s: policies %v, want %v", name, a, b)
		}
	}
}

func policiesIn(t *testing.T, s storage.Store) (ids []string) {
	err := storage.Txn(t.Context(), s, storage.TransactionParams{}, func(txn storage.Transaction) (err error) {
		ids, err = s.ListPolicies(t.Context(), txn)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(ids)
	return ids
}

// Activating bundles, one after another, leaves what it leaves in OPA's store, whose
// activator is OPA's own.
func TestActivateAsOPA(t *testing.T) {
	Everywhere()
	steps := []map[string]string{
		{"/.manifest": `{"revision": "1", "roots": ["a", "p"]}`, "/a/data.json": `{"x": 1}`, "/p/p.rego": "package p\nq := data.a.x"},
		{"/.manifest": `{"revision": "2", "roots": ["a", "p"]}`, "/data.json": `{"a": {"y": [1, 2]}}`, "/p/p.rego": "package p\nq := data.a.y"},
		{"/.manifest": `{"revision": "3", "roots": ["a"]}`, "/b/data.json": `{"x": 1}`},
		{"/.manifest": `{"revision": "4", "roots": ["a/b"]}`, "/data.json": `{"a": {"c": 1}}`},
		{"/.manifest": `{"revision": "5", "roots": ["a/b"]}`, "/a/data.json": `{"b": {"c": 1}}`},
		{"/.manifest": `{"revision": "6", "roots": ["a", "p"]}`, "/a/data.json": `{"x": 1}`, "/p/p.rego": "package a.x\nq := 1"},
		{"/.manifest": `{"revision": "7", "roots": ["a", "p"]}`, "/a/data.json": `{"x": `},
		{"/.manifest": `{"revision": "8"}`, "/data.json": `{"a": {"z": 1}, "m": null}`},
		{"/.manifest": `{"revision": "9"}`, "/a.rego": "package a.z.w\nq := 1", "/data.json": `{"a": {"z": 1}}`},
	}
	ours, opa := New(), opaStore()
	for i, files := range steps {
		activate := func(s storage.Store) error {
			dir := t.TempDir()
			for name, text := range files {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
					return err
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					return err
				}
			}
			b, err := opabundle.NewCustomReader(opabundle.NewDirectoryLoader(dir)).WithBundleName("b").WithLazyLoadingMode(true).Read()
			if err != nil {
				return err
			}
			return storage.Txn(t.Context(), s, storage.WriteParams, func(txn storage.Transaction) error {
				c := ast.NewCompiler().WithPathConflictsCheck(storage.NonEmpty(t.Context(), s, txn))
				return opabundle.Activate(&opabundle.ActivateOpts{Ctx: t.Context(), Store: s, Txn: txn, Compiler: c, Metrics: metrics.New(), Bundles: map[string]*opabundle.Bundle{"b": &b}})
			})
		}
		if err, want := activate(ours), activate(opa); (err == nil) != (want == nil) {
			t.Errorf("step %d: %v, want %v", i+1, err, want)
		}
		sameStores(t, ours, opa)
		if a, b := policiesIn(t, ours), policiesIn(t, opa); !slices.Equal(a, b) {
			t.Errorf("step %d: policies %v, want %v", i+1, a, b)
		}
	}
}

// Files and folders are read as by OPA's loader.
func TestLoadAsOPA(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"data.json": `{"top": 1}`, "a/users.json": `{"u1": 1}`, "a/more.json": `{"u2": 2}`, "a/b/c.yaml": "x: 1\n", "a/b/d.json": `{"y": 2}`,
		"a/p.rego": "package p\nq := 1", "a/note.txt": "not data", "one.json": `{"a": {"u3": 3}}`, "list.json": `[1]`, "clash.json": `{"a": {"u1": 1}}`,
		"broken.json": `{"a": `, "odd": `{"any": "type"}`, "yaml.json": "a: 1",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	at := func(names ...string) (paths []string) {
		for _, name := range names {
			prefix, file, found := strings.Cut(name, ":")
			if !found {
				prefix, file = "", name
			} else {
				prefix += ":"
			}
			paths = append(paths, prefix+filepath.Join(dir, file))
		}
		return paths
	}
	for _, paths := range [][]string{
		at("data.json"), at("a"), at("a", "data.json", "one.json"), at("x.y:a", "x:data.json"), at("x.y:list.json"), at("list.json"), at("a", "a:clash.json", "one.json"),
		at("a:a", "clash.json"), at("broken.json"), at("gone.json"), at("odd"), at("yaml.json"), at("data.json", "data.json"),
		{"file://" + filepath.Join(dir, "a")},
		nil,
	} {
		want, wantErr := loader.NewFileLoader().Filtered(paths, nil)
		got, data, err := Load(paths, ast.RegoV1)
		if (err == nil) != (wantErr == nil) {
			t.Errorf("%v: %v, want %v", paths, err, wantErr)
			continue
		}
		if err != nil {
			continue
		}
		value, err := ast.InterfaceToValue(want.Documents)
		if err != nil {
			t.Fatal(err)
		}
		if !same(data.root.ast(), value) || len(got.Modules) != len(want.Modules) {
			t.Errorf("%v: got %v, %d modules, want %v, %d modules", paths, data.root.ast(), len(got.Modules), value, len(want.Modules))
		}
	}
}

// What many files have is put together without a copy for each of them, and one that does
// not fit does not take the others away.
func TestManyFiles(t *testing.T) {
	doc, err := parse([]byte(`{"x": 1}`))
	if err != nil {
		t.Fatal(err)
	}
	d := Data{root: value{object: &object{}}}
	var first *object
	const n = 100
	for i := range n {
		if err := d.add(storage.Path{fmt.Sprint("f", i)}, doc); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = d.root.object
		}
	}
	if d.root.object != first {
		t.Error("each file has all before it copied")
	}
	if err := d.add(storage.Path{"f1", "x"}, doc); err == nil {
		t.Error("an object is put where a number is")
	}
	if got := d.root.ast().(ast.Object).Len(); got != n {
		t.Errorf("%d members", got)
	}
}

// What is kept of made values is bounded, and what is large is made once.
func TestMade(t *testing.T) {
	doc, err := parse([]byte(document1(3000)))
	if err != nil {
		t.Fatal(err)
	}
	s := New()
	s.Fill(Data{root: value{doc: doc}})
	s.Warm(storage.Path{"roles"})
	s.Warm(storage.Path{"not", "there"})
	s.Warm(storage.Path{"exact"})
	if len(doc.made.held) != 1 {
		t.Fatalf("%d values are held, want the roles only", len(doc.made.held))
	}
	a, b := readAt(t, s, "roles").(ast.Object), readAt(t, s, "roles").(ast.Object)
	if a != b {
		t.Error("what is large is made twice")
	}
	for i := range 200 {
		doc.made.keep(i, keptBytes/100, ast.NullValue)
	}
	if n := len(doc.made.young) + len(doc.made.old); n > 100 {
		t.Errorf("%d values of a hundredth of the bound are kept", n)
	}
	if doc.made.get(199) == nil {
		t.Error("what came last is not kept")
	}
}

// A store without policies in an iterator that fails stays as it was.
func TestTruncateFails(t *testing.T) {
	s := New()
	err := storage.Txn(t.Context(), s, storage.WriteParams, func(txn storage.Transaction) error {
		return s.Truncate(t.Context(), txn, storage.TransactionParams{}, failing{})
	})
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
}

type failing struct{}

func (failing) Next() (*storage.Update, error) { return nil, io.ErrUnexpectedEOF }
