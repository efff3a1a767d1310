package meshdir

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// FuzzParse: whatever the bytes, reading ends without a panic, the mesh is
// usable, problems make sense, and what was accepted is accepted again, and
// means the same, after it was written out.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/mesh/*.y*ml", "testdata/bad/*.yaml"} {
		names, err := filepath.Glob(pattern)
		if err != nil || len(names) == 0 {
			f.Fatal(pattern, err)
		}
		for _, name := range names {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(filepath.Base(name) == meshFile, data)
			for _, c := range splitDocuments(data) {
				f.Add(false, c.text)
			}
		}
	}
	f.Fuzz(func(t *testing.T, mesh bool, data []byte) {
		name := "a.yaml"
		if mesh {
			name = meshFile
		}
		m, problems := Parse(map[string][]byte{name: data}, data, Options{})
		if m == nil || m.Config == nil || m.TrustDomain == "" {
			t.Fatal("no usable mesh")
		}
		lines := 1
		for _, r := range string(data) { // YAML knows more line breaks than one
			if strings.ContainsRune("\n\r\u0085\u2028\u2029", r) {
				lines++
			}
		}
		for _, p := range problems {
			if p.Message == "" || p.Line < 0 || p.Line > lines+1 || p.File == "" {
				t.Errorf("a problem without place or words: %+v", p)
			}
		}
		for _, o := range newParser(&Options{}, false).parse("a.yaml", data).objects {
			acceptedAgain(t, o)
		}
	})
}

func acceptedAgain(t *testing.T, o *object) {
	t.Helper()
	spec, ok := o.spec.(proto.Message)
	if _, whole := o.spec.(interface{ ProtoMessage() }); !ok || !whole || get(o.root, "spec") == nil {
		return
	}
	text, err := protojson.Marshal(spec)
	if err != nil {
		t.Fatalf("%s: %v", o.id(), err)
	}
	quote := func(s string) string { b, _ := json.Marshal(s); return string(b) }
	var annotations []string
	for _, k := range slices.Sorted(maps.Keys(o.meta.Annotations)) {
		annotations = append(annotations, quote(k)+": "+quote(o.meta.Annotations[k]))
	}
	document := fmt.Sprintf(`{"apiVersion": %s, "kind": %s, "metadata": {"name": %s, "namespace": %s, "annotations": {%s}}, "spec": %s}`,
		quote(get(o.root, "apiVersion").Value), quote(o.meta.Kind), quote(o.meta.Name), quote(o.meta.Namespace), strings.Join(annotations, ", "), text)
	again := newParser(&Options{}, false).parse("b.yaml", []byte(ascii(document)))
	if len(again.objects) != 1 {
		t.Fatalf("%s is refused after it was written out: %v\n%s", o.id(), again.problems, document)
	}
	if !proto.Equal(spec, again.objects[0].spec.(proto.Message)) {
		t.Errorf("%s has changed:\n%v\n%v", o.id(), spec, again.objects[0].spec)
	}
}

// ascii escapes what YAML takes for a line break, and JSON does not.
func ascii(s string) string {
	var out strings.Builder
	for _, r := range s {
		switch {
		case r < 0x7f:
			out.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&out, `\U%08x`, r)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return out.String()
}
