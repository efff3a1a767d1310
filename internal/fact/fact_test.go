package fact_test

import (
	"strings"
	"testing"

	"github.com/writ-mesh/writ/internal/fact"
)

func TestParse(t *testing.T) {
	sum := strings.Repeat("0a", 32)
	for s, want := range map[string]fact.Kind{
		"unix:uid:0":                              "unix:uid",
		"unix:gid:4294967295":                     "unix:gid",
		"unix:supplementary_gid:27":               "unix:supplementary_gid",
		"unix:path:/usr/bin/with:colon":           "unix:path",
		"unix:parent_path:/usr/bin/x":             "unix:parent_path",
		"unix:sha256:" + sum:                      "unix:sha256",
		"container:id:" + sum:                     "container:id",
		"docker:label:com.example.a:b:c":          "docker:label",
		"docker:label:empty:":                     "docker:label",
		"docker:image:registry:5000/a:1":          "docker:image",
		"docker:image_id:sha256:" + sum:           "docker:image_id",
		"docker:name:web":                         "docker:name",
		"k8s:pod-uid:f4b5-not-checked":            "k8s:pod-uid",
		"k8s:ns:default":                          "k8s:ns",
		"k8s:sa:billing":                          "k8s:sa",
		"k8s:pod-name:billing-1":                  "k8s:pod-name",
		"k8s:ns:":                                 "",
		"unix:uid:01":                             "",
		"unix:uid:-1":                             "",
		"unix:uid:4294967296":                     "",
		"unix:uid:":                               "",
		"unix:user:root":                          "",
		"uid:1":                                   "",
		"":                                        "",
		"unix:path:bin/x":                         "",
		"unix:sha256:" + sum + "00":               "",
		"unix:sha256:" + strings.ToUpper(sum):     "",
		"docker:label:a":                          "",
		"docker:label::a":                         "",
		"docker:name:":                            "",
		"unix:path:/a\nunix:uid:0":                "",
		"unix:path:/" + strings.Repeat("a", 5000): "",
	} {
		k, v, err := fact.Parse(s)
		if k != want || (err == nil) != (want != "") {
			t.Errorf("%.60q: kind %q, %v, want %q", s, k, err, want)
		}
		if err == nil && string(k)+":"+v != s {
			t.Errorf("%q is written as %q", s, string(k)+":"+v)
		}
	}
}

// FuzzParse: what is taken has one written form.
func FuzzParse(f *testing.F) {
	f.Add("unix:uid:7")
	f.Add("docker:label:a:b")
	f.Fuzz(func(t *testing.T, s string) {
		if k, v, err := fact.Parse(s); err == nil && string(k)+":"+v != s {
			t.Errorf("%q is written as %q", s, string(k)+":"+v)
		}
	})
}
