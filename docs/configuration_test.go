package docs_test

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/writ-mesh/writ/authz"
	"github.com/writ-mesh/writ/ca"
	"github.com/writ-mesh/writ/internal/config"
	"github.com/writ-mesh/writ/internal/credential"
	"github.com/writ-mesh/writ/internal/service"
	"github.com/writ-mesh/writ/nodeagent"
	"github.com/writ-mesh/writ/pilot"
	"github.com/writ-mesh/writ/ratelimit"
)

// setting is one key as configuration.md tells it, less what it does.
type setting struct{ key, kind, value string }

// settings gives the keys of a configuration in the order of its fields. The
// common part and the credential have sections of their own.
func settings(t *testing.T, prefix string, v reflect.Value) []setting {
	t.Helper()
	var out []setting
	for i := range v.NumField() {
		tag, options, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		f, key := v.Field(i), prefix+tag
		switch f.Interface().(type) {
		case service.Common:
			continue
		case credential.Config:
			out = append(out, setting{key, "section", ""})
			continue
		case config.Duration:
			out = append(out, setting{key, "duration", "`" + short(time.Duration(f.Int())) + "`"})
			continue
		}
		switch {
		case tag == "-":
		case options == "inline":
			out = append(out, settings(t, prefix, f)...)
		case tag == "":
			t.Errorf("%s: field %s has no key", v.Type(), v.Type().Field(i).Name)
		case f.Kind() == reflect.Struct:
			out = append(out, settings(t, key+".", f)...)
		case f.Kind() == reflect.String && f.Len() == 0:
			out = append(out, setting{key, "text", "none"})
		case f.Kind() == reflect.Map && f.Len() == 0:
			out = append(out, setting{key, "map", "none"})
		case f.Kind() == reflect.Slice && f.Len() == 0:
			out = append(out, setting{key, "list", "none"})
		default:
			kind, known := map[reflect.Kind]string{reflect.String: "text", reflect.Bool: "true or false", reflect.Int: "number"}[f.Kind()]
			if !known {
				t.Errorf("%s: what type is a %s?", key, f.Type())
			}
			out = append(out, setting{key, kind, fmt.Sprintf("`%v`", f.Interface())})
		}
	}
	return out
}

// short writes a duration without its zeros.
func short(d time.Duration) string {
	return regexp.MustCompile(`([hm])0[ms](0s)?$`).ReplaceAllString(d.String(), "$1")
}

func TestConfigurationIsTold(t *testing.T) {
	want := map[string][]setting{
		"every service": settings(t, "", reflect.ValueOf(service.Common{})),
		"credential":    settings(t, "credential.", reflect.ValueOf(credential.Config{})),
		"ca":            settings(t, "", reflect.ValueOf(ca.DefaultConfig())),
		"nodeagent":     settings(t, "", reflect.ValueOf(nodeagent.DefaultConfig())),
		"pilot":         settings(t, "", reflect.ValueOf(pilot.DefaultConfig())),
		"authz":         settings(t, "", reflect.ValueOf(authz.DefaultConfig())),
		"ratelimit":     settings(t, "", reflect.ValueOf(ratelimit.DefaultConfig())),
	}
	row := regexp.MustCompile("^\\| `([a-z_.]+)` \\| ([a-z ]+) \\| ([^|]*?) ?\\| (.+) \\|$")
	got := map[string][]setting{}
	section := ""
	for line := range strings.Lines(read(t, "configuration.md")) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "## "); ok {
			section, _, _ = strings.Cut(rest, ":")
		}
		m := row.FindStringSubmatch(line)
		switch {
		case m != nil:
			got[section] = append(got[section], setting{m[1], m[2], m[3]})
		case strings.HasPrefix(line, "| `"):
			t.Errorf("not a row: %s", line)
		}
	}
	for name := range got {
		if want[name] == nil {
			t.Errorf("%s is no service", name)
		}
	}
	for name, keys := range want {
		for _, s := range keys {
			if !slices.Contains(got[name], s) {
				t.Errorf("%s: there is no row | `%s` | %s | %s | ... |", name, s.key, s.kind, s.value)
			}
		}
		for i, s := range got[name] {
			if !slices.Contains(keys, s) || slices.Index(got[name], s) != i {
				t.Errorf("%s: | `%s` | %s | %s | is not in the code, or is there twice", name, s.key, s.kind, s.value)
			}
		}
	}
}
