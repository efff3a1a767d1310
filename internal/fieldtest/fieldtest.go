// Package fieldtest helps tests that hold a conversion to every field of a
// struct: [Fill] gives a value in which no field is left out, and [Each] changes
// one field after the other. A field that is added later is then tested too.
//
// It knows the kinds that configuration is made of, and panics on others.
package fieldtest

import (
	"fmt"
	"net/netip"
	"reflect"
	"time"
)

// Fill sets every exported field of *v, and of what is in it, to something that
// is not zero. Slices and maps get one element.
func Fill[T any](v *T) { fill(reflect.ValueOf(v).Elem(), "") }

// Each calls try once for each exported field of *v, and of what is in it, while
// that field alone is changed. Slices and maps are changed by an element more,
// pointers, unless they are elements, by being set or taken away.
func Each[T any](v *T, try func(field string)) { each(reflect.ValueOf(v).Elem(), "", try) }

func fill(v reflect.Value, at string) {
	switch v.Kind() {
	case reflect.Struct:
		if other, ok := special(v); ok {
			v.Set(other)
			return
		}
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				fill(v.Field(i), at+"."+f.Name)
			}
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), at)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), at)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, at)
		fill(value, at)
		v.SetMapIndex(key, value)
	default:
		v.Set(another(v, at))
	}
}

func each(v reflect.Value, at string, try func(string)) {
	with := func(changed reflect.Value) {
		before := reflect.New(v.Type()).Elem()
		before.Set(v)
		v.Set(changed)
		try(at)
		v.Set(before)
	}
	switch v.Kind() {
	case reflect.Struct:
		if other, ok := special(v); ok {
			with(other)
			return
		}
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				each(v.Field(i), at+"."+f.Name, try)
			}
		}
	case reflect.Pointer:
		if v.IsNil() {
			set := reflect.New(v.Type())
			fill(set.Elem(), at)
			with(set.Elem())
			return
		}
		each(v.Elem(), at, try)
		with(reflect.Zero(v.Type()))
	case reflect.Slice:
		for i := range v.Len() {
			each(reflect.Indirect(v.Index(i)), fmt.Sprintf("%s[%d]", at, i), try)
		}
		one := reflect.New(v.Type().Elem()).Elem()
		fill(one, at)
		longer := reflect.MakeSlice(v.Type(), 0, v.Len()+1)
		with(reflect.Append(reflect.AppendSlice(longer, v), one))
	case reflect.Map:
		larger := reflect.MakeMap(v.Type())
		for _, k := range v.MapKeys() {
			larger.SetMapIndex(k, v.MapIndex(k))
		}
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, at+" more")
		if key.CanInt() || key.CanUint() {
			key.Set(another(key, at))
		}
		fill(value, at)
		larger.SetMapIndex(key, value)
		with(larger)
	default:
		with(another(v, at))
	}
}

// special gives another value of the structs that are values themselves.
func special(v reflect.Value) (reflect.Value, bool) {
	switch x := v.Interface().(type) {
	case time.Time:
		return reflect.ValueOf(x.Add(time.Second)), true
	case netip.Addr:
		if !x.IsValid() {
			return reflect.ValueOf(netip.AddrFrom4([4]byte{10, 0, 0, 1})), true
		}
		return reflect.ValueOf(x.Next()), true
	}
	return reflect.Value{}, false
}

// another gives a value that v does not have.
func another(v reflect.Value, at string) reflect.Value {
	out := reflect.New(v.Type()).Elem()
	switch {
	case v.Kind() == reflect.Bool:
		out.SetBool(!v.Bool())
	case v.Kind() == reflect.String:
		out.SetString(v.String() + at)
	case v.CanInt():
		out.SetInt(v.Int() + 1)
	case v.CanUint():
		out.SetUint(v.Uint() + 1)
	case v.CanFloat():
		out.SetFloat(v.Float() + 1)
	default:
		panic("fieldtest: " + at + " is of a kind that is not known: " + v.Type().String())
	}
	return out
}
